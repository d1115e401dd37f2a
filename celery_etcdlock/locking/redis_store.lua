-- The lock store's operations on Redis, each atomic because Redis runs one script at a time.
--
-- Keys, all under the prefix P (one instance; not a cluster):
--   revision             the one order of all writes, and so the fencing counter
--   lease/{id}           "{ttl in ms}:{epoch}", runs out by itself
--   v1/{name}            hash of a lock's places: token -> "{create}:{mod}:{lease}:{record}"
--   deleted/{name}       the revision of the last deletion under the name
--   replaced/{task id}, done/{delivery}   marks, that run out with the lease they were put on
--   let-go/{lease}       hash: token -> "{revision}:{who asks}"
--   beat/{name}          hash: key -> "{revision}:{value}"; runs out never
-- A place whose lease has run out is deleted by the first who comes across it.
local P, operation = ARGV[1], ARGV[2]
local call = redis.call

local function lease_of(id)
  local value = call('GET', P .. 'lease/' .. id)
  if not value then return nil end
  local ttl, epoch = string.match(value, '^(%d+):(%d+)$')
  return {ttl = ttl, epoch = tonumber(epoch)}
end

local function next_revision()
  return call('INCR', P .. 'revision')
end

local function now_revision()
  return tonumber(call('GET', P .. 'revision') or '0')
end

local function say_deleted(name)
  local revision = next_revision()
  call('SET', P .. 'deleted/' .. name, revision, 'EX', 3600)
  call('PUBLISH', P .. 'changed/' .. name, revision)
end

local function places(name)
  local flat = call('HGETALL', P .. 'v1/' .. name)
  local found, dead = {}, false
  for i = 1, #flat, 2 do
    local create, mod, lease, record = string.match(flat[i + 1], '^(%d+):(%d+):(%d+):(.*)$')
    if call('EXISTS', P .. 'lease/' .. lease) == 1 then
      found[#found + 1] = {flat[i], tonumber(create), tonumber(mod), record, lease}
    else
      call('HDEL', P .. 'v1/' .. name, flat[i])
      dead = true
    end
  end
  if dead then say_deleted(name) end
  table.sort(found, function(a, b) return a[2] < b[2] end)
  return found
end

local function find(found, token)
  for _, place in ipairs(found) do
    if place[1] == token then return place end
  end
end

local function present(found)
  return {'present', found, now_revision()}
end

local function put(name, token, lease, record, create, revision)
  revision = revision or next_revision()
  call('HSET', P .. 'v1/' .. name, token, string.format('%d:%d:%s:%s', create or revision, revision, lease, record))
  return revision
end

local function created_after(found, seen)
  for _, place in ipairs(found) do
    if place[2] > seen then return true end
  end
  return false
end

-- Whether the mark is there; -1 if none was asked for.
local function seen(mark)
  if mark == nil or mark == '' then return -1 end
  local on = call('GET', P .. mark)
  return on and call('EXISTS', P .. 'lease/' .. on) or 0
end

local function with_seen(reply, mark)
  if reply[1] == 'owned' or reply[1] == 'present' then reply[#reply + 1] = seen(mark) end
  return reply
end

local function put_mark(mark, lease)
  call('SET', P .. mark, lease, 'PX', math.max(1, call('PTTL', P .. 'lease/' .. lease)))
end

local function try(name, token, lease, record, seen)
  local found = places(name)
  local mine = find(found, token)
  -- Who puts a place creates it: if it was rewritten since, that was somebody else.
  if mine then return {'owned', mine[2]} end
  if created_after(found, seen) then return present(found) end
  return {'owned', put(name, token, lease, record)}
end

local function state_of(name, key)
  local flat = call('HGET', P .. 'beat/' .. name, key)
  if not flat then return 0, nil end
  local revision, value = string.match(flat, '^(%d+):(.*)$')
  return tonumber(revision), value
end

if operation == 'save' then
  local name = ARGV[3]
  local guard = find(places(ARGV[4]), ARGV[5])
  if not guard or guard[3] ~= tonumber(ARGV[6]) then return {'not held'} end
  local there, as_seen = {}, true
  for i = 7, #ARGV, 4 do
    local revision, value = state_of(name, ARGV[i])
    if revision ~= tonumber(ARGV[i + 1]) then as_seen = false end
    if value then there[#there + 1] = {ARGV[i], revision, value} end
  end
  if not as_seen then return {'refused', there} end
  local revision = next_revision()
  for i = 7, #ARGV, 4 do
    if ARGV[i + 2] == '1' then
      call('HSET', P .. 'beat/' .. name, ARGV[i], revision .. ':' .. ARGV[i + 3])
    else
      call('HDEL', P .. 'beat/' .. name, ARGV[i])
    end
  end
  return {'saved', revision}
elseif operation == 'load' then
  local keys, states = call('HKEYS', P .. 'beat/' .. ARGV[3]), {}
  table.sort(keys)
  for i, key in ipairs(keys) do
    local revision, value = state_of(ARGV[3], key)
    states[i] = {key, revision, value}
  end
  return {'states', states}
elseif operation == 'grant' then
  call('SET', P .. 'lease/' .. ARGV[3], ARGV[4] .. ':0', 'PX', ARGV[4], 'NX')
  return {'granted', ARGV[4] / 1000}
elseif operation == 'revoke' then
  call('DEL', P .. 'lease/' .. ARGV[3], P .. 'let-go/' .. ARGV[3])
  -- Those who wait for its keys look again by themselves, at the latest when it would have run out.
  return {'done'}
elseif operation == 'age' then
  local granted = lease_of(ARGV[3])
  if not granted then return {'unknown'} end
  return {'age', granted.ttl - call('PTTL', P .. 'lease/' .. ARGV[3])}
elseif operation == 'look' then
  return present(places(ARGV[3]))
elseif operation == 'release' then
  local mine = find(places(ARGV[3]), ARGV[4])
  if not mine or mine[3] ~= tonumber(ARGV[5]) then return {'not held'} end
  if ARGV[6] then
    if not lease_of(ARGV[7]) then return {'gone'} end
    put_mark(ARGV[6], ARGV[7])
  end
  call('HDEL', P .. 'v1/' .. ARGV[3], ARGV[4])
  say_deleted(ARGV[3])
  return {'released'}
elseif operation == 'changed' then
  local found, after = places(ARGV[3]), tonumber(ARGV[4])
  local changed
  if ARGV[5] == '' then
    changed = tonumber(call('GET', P .. 'deleted/' .. ARGV[3]) or '0') > after
  else
    local watched = find(found, ARGV[5])
    changed = not watched or watched[3] > after
  end
  local left = 3600000
  for _, place in ipairs(found) do
    left = math.min(left, math.max(0, call('PTTL', P .. 'lease/' .. place[5])))
  end
  return {changed and 1 or 0, left}
elseif operation == 'ask' then
  local mine = find(places(ARGV[3]), ARGV[4])
  if not mine or mine[3] ~= tonumber(ARGV[5]) then return {'not held'} end
  call('HSET', P .. 'let-go/' .. mine[5], ARGV[4], next_revision() .. ':' .. ARGV[6])
  call('PEXPIRE', P .. 'let-go/' .. mine[5], 3600000)
  return {'asked'}
elseif operation == 'replaced' or operation == 'ended' then
  return {operation, seen(ARGV[3])}
elseif operation == 'unmark' then
  call('DEL', P .. ARGV[3])
  return {'done'}
end

-- From here on: what needs a lease.
local lease = ARGV[3]
local state = lease_of(lease)
if not state then return {'gone'} end
if operation == 'fence' then
  local revision = next_revision()
  call('SET', P .. 'lease/' .. lease, state.ttl .. ':' .. revision, 'KEEPTTL')
  return {'fenced', revision}
elseif operation == 'keep alive' then
  call('PEXPIRE', P .. 'lease/' .. lease, state.ttl)
  return {'kept', math.floor(tonumber(state.ttl) / 1000)}
elseif operation == 'mark' then
  put_mark(ARGV[4], lease)
  return {'done'}
end
if state.epoch == 0 then return {'gone'} end
if operation == 'check' then
  local missing = {}
  for i = 4, #ARGV, 3 do
    local value = call('HGET', P .. 'v1/' .. ARGV[i], ARGV[i + 1])
    local mod = value and string.match(value, '^%d+:(%d+):')
    if mod ~= ARGV[i + 2] then missing[#missing + 1] = {ARGV[i], ARGV[i + 1], ARGV[i + 2]} end
  end
  return {'seen', missing, call('HGETALL', P .. 'let-go/' .. lease)}
end

local epoch = tonumber(ARGV[4])
local name, token, record = ARGV[5], ARGV[6], ARGV[7]
if operation == 'try' then
  if state.epoch ~= epoch and not find(places(name), token) then return {'moved', state.epoch} end
  return with_seen(try(name, token, lease, record, tonumber(ARGV[8])), ARGV[9])
elseif operation == 'enqueue' then
  local found = places(name)
  if find(found, token) then return present(found) end
  if state.epoch ~= epoch then return {'moved', state.epoch} end
  local revision = put(name, token, lease, record)
  return {'queued', places(name), revision}
elseif operation == 'promote' then
  local mod, alone, replaces = tonumber(ARGV[8]), ARGV[9] == '1', ARGV[10]
  local found = places(name)
  local mine = find(found, token)
  if not mine or mine[3] ~= mod then return present(found) end
  if state.epoch ~= epoch then return {'moved', state.epoch} end
  if alone and found[1][1] ~= token then return present(found) end
  local revision = put(name, token, lease, record, mine[2])
  call('PUBLISH', P .. 'changed/' .. name, revision)
  if replaces ~= '' then put_mark('replaced/' .. replaces, lease) end
  return with_seen({'owned', revision}, ARGV[11])
end

-- try each, try all: name, token, record, seen; and again; and at last a mark
if state.epoch ~= epoch then return {'moved', state.epoch} end
local outcomes = {}
if operation == 'try each' then
  for i = 5, #ARGV - 1, 4 do
    outcomes[#outcomes + 1] = try(ARGV[i], ARGV[i + 1], lease, ARGV[i + 2], tonumber(ARGV[i + 3]))
  end
  return {'each', outcomes, -1}
end
local free, mine, highest = true, 0, 0
local has_run = seen(ARGV[#ARGV])
for i = 5, #ARGV - 1, 4 do
  local found = places(ARGV[i])
  local own = find(found, ARGV[i + 1])
  if own then
    mine = mine + 1
    highest = math.max(highest, own[2])
  end
  if created_after(found, tonumber(ARGV[i + 3])) then free = false end
  outcomes[#outcomes + 1] = present(found)
end
if mine == #outcomes then return {'owned', highest, has_run} end
if not free then return {'each', outcomes, has_run} end
local revision = next_revision()
for i = 5, #ARGV - 1, 4 do put(ARGV[i], ARGV[i + 1], lease, ARGV[i + 2], nil, revision) end
return {'owned', revision, has_run}
