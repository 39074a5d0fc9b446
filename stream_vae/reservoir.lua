-- Offer a batch to one stratum: the k alerts of smallest rank stay, whatever the order and however often each comes.
--
-- KEYS  meta (hash), ranks (sorted set, id -> rank), stamps (hash, id -> record)
-- ARGV  layout, preprocessing digest, preprocessing JSON, capacity; then id, rank, record of each alert
-- Gives {'ok', size, capacity, largest rank or -1 while there is room, entered}
--    or {'layout' or 'preprocessing', what the keys say}, having written nothing

local MOST_TRIMMED = 1000  -- after the capacity was lowered: what one call removes besides, so that none takes long

local meta = redis.call('HMGET', KEYS[1], 'layout', 'digest', 'capacity')
local size = redis.call('ZCARD', KEYS[2])
if meta[1] and meta[1] ~= ARGV[1] then return {'layout', meta[1]} end
if not meta[1] and size > 0 then return {'layout', ''} end
if meta[1] and meta[2] ~= ARGV[2] then return {'preprocessing', meta[2]} end

-- The capacity can only shrink. A larger one would take in new alerts where older ones of the same rank were turned
-- away, and the sample would no longer be uniform over time.
local stored = tonumber(meta[3] or ARGV[4])
local capacity = math.min(stored, tonumber(ARGV[4]))
if #ARGV > 4 and (not meta[1] or capacity < stored) then
  redis.call('HSET', KEYS[1], 'layout', ARGV[1], 'digest', ARGV[2], 'preprocessing', ARGV[3], 'capacity', capacity)
end

local function largest()
  if size < capacity then return -1 end
  return tonumber(redis.call('ZRANGE', KEYS[2], -1, -1, 'WITHSCORES')[2])
end

local function trim(most)
  local excess = math.min(size - capacity, most)
  if excess <= 0 then return end
  local gone = redis.call('ZPOPMAX', KEYS[2], excess)
  for i = 1, #gone, 2 do redis.call('HDEL', KEYS[3], gone[i]) end
  size = size - excess
end

local entered = 0
local worst = largest()
for i = 5, #ARGV, 3 do
  if worst < 0 or tonumber(ARGV[i + 1]) < worst then
    if redis.call('ZADD', KEYS[2], 'NX', ARGV[i + 1], ARGV[i]) == 1 then
      redis.call('HSET', KEYS[3], ARGV[i], ARGV[i + 2])
      entered = entered + 1
      size = size + 1
      trim(1)
      worst = largest()
    end
  end
end
trim(MOST_TRIMMED)
return {'ok', size, capacity, largest(), entered}
