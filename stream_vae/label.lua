-- Keep a label, and the stamp of the alert that it is of for good; or let it wait for the stamp.
--
-- KEYS  as of reservoir.lua
-- ARGV  layout, alert id, the label as one line of JSON, a record or '', capacity of anchors, how many may wait,
--       bytes that all labels may take, time in seconds, a name for this reservoir if it is new
-- Gives 'anchored', 'added', 'repeated', 'waiting' or 'full'; or {'layout', what the keys say}

local META, STAMPS, LABELS, WAITING, ANCHORS = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local id, line, record = ARGV[2], ARGV[3], ARGV[4]

local layout = redis.call('HGET', META, 'layout')
if layout and layout ~= ARGV[1] then return {'layout', layout} end
if not layout and redis.call('EXISTS', unpack(KEYS)) > 0 then return {'layout', ''} end

local lines = redis.call('HGET', LABELS, id)
local known = lines and string.find('\n' .. lines .. '\n', '\n' .. line .. '\n', 1, true)
local anchored = redis.call('ZSCORE', ANCHORS, id)
local waits = redis.call('ZSCORE', WAITING, id)
local there = record ~= '' or redis.call('HEXISTS', STAMPS, id) == 1

local function full()
  -- What waits has its place already, so that nothing is refused when its stamp comes.
  local taken = redis.call('ZCARD', ANCHORS) + redis.call('ZCARD', WAITING)
  if not anchored and not waits then
    if taken >= tonumber(ARGV[5]) then return true end
    if not there and redis.call('ZCARD', WAITING) >= tonumber(ARGV[6]) then return true end
  end
  local bytes = tonumber(redis.call('HGET', META, 'label_bytes') or '0')
  return not known and bytes + #line + 1 > tonumber(ARGV[7])
end

if full() then
  if layout then redis.call('HINCRBY', META, 'refused', 1) end
  return 'full'
end
if known and (anchored or not there) then return 'repeated' end

if not layout then redis.call('HSET', META, 'layout', ARGV[1], 'name', ARGV[9]) end
if not known then
  redis.call('HSET', LABELS, id, lines and (lines .. '\n' .. line) or line)
  redis.call('HINCRBY', META, 'label_bytes', #line + 1)
end
if anchored then return 'added' end
if not there then
  if not waits then
    redis.call('ZADD', WAITING, ARGV[8], id)
    redis.call('HINCRBY', META, 'waiting_version', 1)
  end
  return 'waiting'
end
if redis.call('HEXISTS', STAMPS, id) == 0 then redis.call('HSET', STAMPS, id, record) end
redis.call('ZADD', ANCHORS, 0, id)
if redis.call('ZREM', WAITING, id) == 1 then redis.call('HINCRBY', META, 'waiting_version', 1) end
return 'anchored'
