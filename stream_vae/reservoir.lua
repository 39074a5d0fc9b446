-- Offer a batch to all strata: in each the k alerts of smallest rank stay, whatever the order and however often each
-- comes. A stamp is stored once, as long as a stratum keeps its alert.
--
-- KEYS  meta (hash), stamps (hash, id -> record), labels (hash, id -> lines), waiting (sorted set, id -> when),
--       anchors, uniform, recent, rare, known (sorted sets, id -> rank)
-- ARGV  layout, preprocessing digest, preprocessing JSON, recent_days, a name for this reservoir if it is new,
--       the version of the waiting ids that the caller has or '-' if it does not ask,
--       five capacities in the order of the sorted sets;
--       then id, record and the ranks in uniform, recent, rare, known ('' where it cannot enter) of each alert
-- Gives {'ok', name or '', entered, stamps, recent_days, version of the waiting ids, these ids or nothing,
--        size, capacity and threshold of each sorted set}
--    or {'layout' or 'preprocessing', what the keys say}, having written nothing

local META, STAMPS, WAITING = KEYS[1], KEYS[2], KEYS[4]
local SETS, FIRST, WIDTH = 4, 12, 6  -- KEYS before the sorted sets; the first row of ARGV and the width of each
local ANCHORS, RECENT, KNOWN = 1, 3, 5
local MOST_TRIMMED = 1000  -- after a capacity was lowered: what one call removes besides, so that none takes long

local names = {'anchors', 'uniform', 'recent', 'rare', 'known'}
local fields = {'layout', 'digest', 'name', 'recent_days', 'waiting_version'}
for s = 1, 5 do fields[5 + s] = 'capacity:' .. names[s] end
local meta = redis.call('HMGET', META, unpack(fields))
if meta[1] and meta[1] ~= ARGV[1] then return {'layout', meta[1]} end
if not meta[1] and redis.call('EXISTS', unpack(KEYS)) > 0 then return {'layout', ''} end
if meta[2] and meta[2] ~= ARGV[2] then return {'preprocessing', meta[2]} end

local sizes, capacities, worst = {}, {}, {}
local changed = not meta[2]
for s = 1, 5 do
  local asked, stored = tonumber(ARGV[6 + s]), tonumber(meta[5 + s] or '0')
  sizes[s] = redis.call('ZCARD', KEYS[SETS + s])
  -- The capacity of a sample can only shrink. A larger one would take in new alerts where older ones of the same rank
  -- were turned away, and the sample would no longer be one of all times. One that was off begins anew.
  capacities[s] = asked
  if s ~= ANCHORS and (stored > 0 or sizes[s] > 0) then capacities[s] = math.min(asked, stored) end
  if capacities[s] ~= tonumber(meta[5 + s] or '-1') then changed = true end
end
local days = meta[4] or ARGV[4]
if #ARGV >= FIRST and changed then
  redis.call('HSET', META, 'layout', ARGV[1], 'digest', ARGV[2], 'preprocessing', ARGV[3], 'recent_days', days,
    'name', meta[3] or ARGV[5])
  for s = 1, 5 do redis.call('HSET', META, 'capacity:' .. names[s], capacities[s]) end
  meta[3] = meta[3] or ARGV[5]
end

local function threshold(s)
  if capacities[s] == 0 then return '-inf' end
  if sizes[s] < capacities[s] then return 'inf' end
  return redis.call('ZRANGE', KEYS[SETS + s], -1, -1, 'WITHSCORES')[2]  -- as text: a number would lose its fraction
end

local function kept(id)
  for s = 1, 5 do
    if redis.call('ZSCORE', KEYS[SETS + s], id) then return true end
  end
  return false
end

local function trim(s, most)
  local excess = math.min(sizes[s] - capacities[s], most)
  if excess <= 0 then return end
  local gone = redis.call('ZPOPMAX', KEYS[SETS + s], excess)
  for i = 1, #gone, 2 do
    if not kept(gone[i]) then redis.call('HDEL', STAMPS, gone[i]) end
  end
  sizes[s] = sizes[s] - excess
end

-- Gives whether the alert is new in the stratum, and whether anything changed
local function enter(s, id, rank)
  local before = redis.call('ZSCORE', KEYS[SETS + s], id)
  if not before and tonumber(rank) >= worst[s] then return false, false end
  if redis.call('ZADD', KEYS[SETS + s], 'LT', 'CH', rank, id) == 0 then return false, false end
  if not before then
    sizes[s] = sizes[s] + 1
    trim(s, 1)
  end
  worst[s] = tonumber(threshold(s))
  return not before, true
end

local waiting = redis.call('ZCARD', WAITING)
local came = 0
local function anchor(id)
  if waiting == 0 or redis.call('ZREM', WAITING, id) == 0 then return false end
  sizes[ANCHORS] = sizes[ANCHORS] + redis.call('ZADD', KEYS[SETS + ANCHORS], 0, id)
  waiting = waiting - 1
  came = came + 1
  return true
end

-- Where two workers saw one alert at different times, the later record stays, whoever comes first.
local function later(record, stored)
  return struct.unpack('<d', record, 5) > struct.unpack('<d', stored, 5)
end

for s = 1, 5 do worst[s] = tonumber(threshold(s)) end
local entered = 0
for i = FIRST, #ARGV, WIDTH do
  local id, record = ARGV[i], ARGV[i + 1]
  local new, changes = anchor(id), false
  local labels = false
  for s = 2, 5 do
    local rank = ARGV[i + s]
    -- Ranks that decay at another rate cannot be compared; the caller learns the right one from this answer.
    if rank ~= '' and (s ~= RECENT or days == ARGV[4]) then
      local added, moved = enter(s, id, rank)
      new, changes, labels = new or added, changes or moved, labels or (added and s == KNOWN)
    end
  end
  if new then entered = entered + 1 end
  if new or changes then
    local stored = redis.call('HGET', STAMPS, id)
    if not stored or labels or later(record, stored) then redis.call('HSET', STAMPS, id, record) end
  end
end
-- A question without alerts takes away nothing, unless it is what the keys already say.
if #ARGV >= FIRST or not changed then
  for s = 2, 5 do trim(s, MOST_TRIMMED) end
end

local version = meta[5] or '0'
if came > 0 then version = tostring(redis.call('HINCRBY', META, 'waiting_version', 1)) end
local answer = {'ok', meta[3] or '', entered, redis.call('HLEN', STAMPS), days, version, {}}
if ARGV[6] ~= '-' and ARGV[6] ~= version then answer[7] = redis.call('ZRANGE', WAITING, 0, -1) end
for s = 1, 5 do
  answer[#answer + 1] = sizes[s]
  answer[#answer + 1] = capacities[s]
  answer[#answer + 1] = threshold(s)
end
return answer
