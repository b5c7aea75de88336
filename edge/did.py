"""Scripts by which Redis remembers what was used and counts what agents do: each is one step with nothing in between.

A server that started again, or took over from another, may have an older memory than there was: it is known by the id
of its run, which no two have, and that of its history, which is another after each promotion. What is remembered counts
from then on, and agents are counted anew.

They are to answer what :class:`trust.window.Window` answers, by the clock of Redis, which all gateways share. A window
is three kinds of fields in the hash of its agent: ``name`` (its total), ``name<`` (its oldest part), ``name:part``.
"""

from __future__ import annotations

from typing import Final

from trust.recalled import MAX_RUNS
from trust.window import BUCKETS, DAY

KEEP_S: Final = DAY + 3600
"""An agent that did nothing for so long is forgotten."""
FLIGHT_S: Final = 10
"""What a gateway says of what is in flight holds for so long; it says it again before that."""

_MEMORY: Final = """
local history = string.match(redis.call('INFO', 'replication'), 'master_replid:(%x+)') or ''
local memory = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)') .. '-' .. history

-- Since when everything is remembered (Unix seconds of the gateways), and with whose memory: nothing, if not this one.
local function marked(mark)
  local told = redis.call('GET', mark) or ''
  local at, of, lost = string.match(told, '^(%d+) (%x+%-%x*) (%d)$')
  if of ~= memory then return nil, nil, nil end
  return tonumber(at), told, lost == '1'
end

-- The same, from a moment on if it was none; *lost*: by how much what was signed before and is forgotten may seem to be
-- later, or nothing if there was nothing before.
local function since(mark, moment, lost)
  local at, told, before = marked(mark)
  if at == nil then
    at, before = moment + lost, lost > 0
    told = string.format('%d %s %d', at, memory, before and 1 or 0)
    redis.call('SET', mark, told)
  end
  return at, told, before
end
"""

BEGIN: Final = (
    _MEMORY
    + """
-- KEYS: mark; ARGV: time of the gateway, margin if there was another memory before
since(KEYS[1], tonumber(ARGV[1]), redis.call('EXISTS', KEYS[1]) * ARGV[2])
"""
)

SPEND: Final = (
    _MEMORY
    + """
-- KEYS: mark, nonce; ARGV: time of the gateway, life of the nonce (ms), time of the signature, margin
local remembered = since(KEYS[1], tonumber(ARGV[1]), tonumber(ARGV[4]))
if not redis.call('SET', KEYS[2], 1, 'NX', 'PX', ARGV[2]) then return 'replayed' end
return tonumber(ARGV[3]) < remembered and 'unknown' or 'spent'
"""
)

CLAIM: Final = (
    _MEMORY
    + """
-- KEYS: mark, what is claimed
-- ARGV: time of the gateway, life of the claim (ms), who claims, for how long what was lost may be nowhere else (s),
--       margin
-- Answers: who has it, or nothing if that is not known
local remembered, _, lost = since(KEYS[1], tonumber(ARGV[1]), tonumber(ARGV[5]))
local holder = redis.call('GET', KEYS[2])
if holder then return holder end
if lost and tonumber(ARGV[1]) < remembered + ARGV[4] then return '' end
redis.call('SET', KEYS[2], ARGV[3], 'PX', ARGV[2])
return ARGV[3]
"""
)

_WINDOW: Final = f"""{_MEMORY}
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local did = KEYS[1]

local function part_of(span)
  return math.floor(now * {BUCKETS} / span)
end

-- How many there are in a window, before so many more.
local function count(name, span, more)
  local part = part_of(span)
  local least = part - {BUCKETS}
  local known = redis.call('HMGET', did, name, name .. '<')
  local total, oldest = tonumber(known[1]) or 0, tonumber(known[2])
  if oldest == nil then
    redis.call('HSET', did, name .. '<', least)
    oldest = least
  elseif oldest < least then
    for gone = oldest, math.min(least - 1, oldest + {BUCKETS}) do
      local field = name .. ':' .. gone
      local counted = redis.call('HGET', did, field)
      if counted then
        total = total - counted
        redis.call('HDEL', did, field)
      end
    end
    redis.call('HSET', did, name, total, name .. '<', least)
  else
    part = math.max(part, oldest)  -- the clock went back
  end
  if more > 0 then
    redis.call('HINCRBY', did, name, more)
    redis.call('HINCRBY', did, name .. ':' .. part, more)
  end
  return total
end

-- So many more in a part of a window that may be over.
local function put(name, span, part, more)
  count(name, span, 0)
  if part >= tonumber(redis.call('HGET', did, name .. '<')) then
    redis.call('HINCRBY', did, name, more)
    redis.call('HINCRBY', did, name .. ':' .. part, more)
  end
end

local function label(name, lasting)
  local known = tonumber(redis.call('HGET', KEYS[2], name))
  if known == nil or known < lasting then
    redis.call('HSET', KEYS[2], name, string.format('%.3f', lasting))
  end
end

-- Runs that brought nothing for a day are forgotten when there are too many, looked for once a minute at most.
local function full()
  if redis.call('HLEN', KEYS[3]) < {MAX_RUNS} then return false end
  if now - (tonumber(redis.call('HGET', did, 'swept')) or 0) > 60 then
    redis.call('HSET', did, 'swept', string.format('%.3f', now))
    local runs = redis.call('HGETALL', KEYS[3])
    for at = 1, #runs, 2 do
      if now - string.match(runs[at + 1], '^[^\\n]+') > {DAY} then redis.call('HDEL', KEYS[3], runs[at]) end
    end
  end
  return redis.call('HLEN', KEYS[3]) >= {MAX_RUNS}
end

-- A label of a run lasts as long as the run; of more runs than are kept apart it stays with the agent. A run is kept as
-- when it brought something last, and its labels, by lines.
local function label_run(run, name)
  local known = redis.call('HGET', KEYS[3], run)
  if known == false and full() then
    label(name, now + {DAY})
    return
  end
  local labels = known and string.match(known, '^[^\\n]+(.*)') or '\\n'
  if not string.find(labels, '\\n' .. name .. '\\n', 1, true) then labels = labels .. name .. '\\n' end
  redis.call('HSET', KEYS[3], run, string.format('%.3f', now) .. labels)
end

local function keep(lasting)
  redis.call('EXPIRE', did, {KEEP_S})
  redis.call('EXPIRE', KEYS[2], {KEEP_S} + math.ceil(lasting))
  redis.call('EXPIRE', KEYS[3], {KEEP_S} + math.ceil(lasting))
end
"""

COUNT: Final = (
    _WINDOW
    + f"""
-- KEYS: did, labels, runs, flight, mark, nonce
-- ARGV: time of the gateway, life of the nonce (ms), time of the signature, gateway, its calls in flight, how long
--       labels last, run, its labels to come (by lines), the sidecar's log, margin; then of each window its name, span,
--       and how many more
-- Answers: that it counted, now, since when this agent is counted, whether its past is, whether it comes through
--       several sidecars, how many calls are in flight with other gateways, what each window and which labels it had
local remembered, mark = since(KEYS[5], tonumber(ARGV[1]), tonumber(ARGV[10]))
if not redis.call('SET', KEYS[6], 1, 'NX', 'PX', ARGV[2]) then return {{'replayed'}} end
if tonumber(ARGV[3]) < remembered then return {{'unknown'}} end
if redis.call('HGET', did, 'memory') ~= mark then
  redis.call('DEL', did, KEYS[2], KEYS[3])
  redis.call('HSET', did, 'memory', mark)
end
local exact = string.format('%.6f', now)
redis.call('HSETNX', did, 'began', exact)
redis.call('HSETNX', did, 'log', ARGV[9])
if redis.call('HGET', did, 'log') ~= ARGV[9] then redis.call('HSET', did, 'several', 1) end
local told = {{'counted', exact, redis.call('HGET', did, 'began'), redis.call('HEXISTS', did, 'seeded'),
              redis.call('HEXISTS', did, 'several')}}
local flying = 0
local flights = redis.call('HGETALL', KEYS[4])
for at = 1, #flights, 2 do
  local calls, said = string.match(flights[at + 1], '^(%d+) (%S+)$')
  if now - said > {FLIGHT_S} then
    redis.call('HDEL', KEYS[4], flights[at])
  elseif flights[at] ~= ARGV[4] then
    flying = flying + calls
  end
end
redis.call('HSET', KEYS[4], ARGV[4], ARGV[5] .. ' ' .. exact)
redis.call('EXPIRE', KEYS[4], {FLIGHT_S})
told[#told + 1] = flying
for at = 11, #ARGV, 3 do
  told[#told + 1] = count(ARGV[at], tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2]))
end
local lasting = redis.call('HGETALL', KEYS[2])
for at = 1, #lasting, 2 do
  if tonumber(lasting[at + 1]) > now then
    told[#told + 1] = lasting[at]
  else
    redis.call('HDEL', KEYS[2], lasting[at])
  end
end
local seen = redis.call('HGET', KEYS[3], ARGV[7])
for name in string.gmatch(seen and string.match(seen, '\\n.*') or '', '[^\\n]+') do
  told[#told + 1] = name
end
for name in string.gmatch(ARGV[8], '[^\\n]+') do
  label(name, now + ARGV[6])
  label_run(ARGV[7], name)
end
keep(ARGV[6])
return told
"""
)

PUT: Final = (
    _WINDOW
    + """
-- KEYS: did, labels, runs, mark
-- ARGV: a mark that this is done once for an agent, or nothing; since when it is counted, if what was told before that
--       is not to count, or nothing; how long labels last; whether the agent came through several sidecars; the number
--       of windows; of each its name, span, part (or nothing: that of now), and how many more; then of each label its
--       name, until when, and run
local _, mark = marked(KEYS[4])
if mark == nil or redis.call('HGET', did, 'memory') ~= mark then return 0 end  -- who is not counted is read of later
if ARGV[2] ~= '' and redis.call('HGET', did, 'began') ~= ARGV[2] then return 0 end
if ARGV[1] ~= '' and redis.call('HSETNX', did, ARGV[1], 1) == 0 then return 0 end
if ARGV[4] == '1' then redis.call('HSET', did, 'several', 1) end
local last = 5 + 4 * ARGV[5]
for at = 6, last, 4 do
  local span = tonumber(ARGV[at + 1])
  put(ARGV[at], span, tonumber(ARGV[at + 2]) or part_of(span), tonumber(ARGV[at + 3]))
end
for at = last + 1, #ARGV, 3 do
  label(ARGV[at], tonumber(ARGV[at + 1]))
  label_run(ARGV[at + 2], ARGV[at])
end
keep(ARGV[3])
return 1
"""
)

RELEASE: Final = """
-- KEYS: what is held; ARGV: who holds it
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
"""

FLY: Final = f"""
-- KEYS: of each agent its flights; ARGV: the gateway, then of each agent its calls in flight
local time = redis.call('TIME')
local now = string.format('%.6f', time[1] + time[2] / 1000000)
for at, key in ipairs(KEYS) do
  redis.call('HSET', key, ARGV[1], ARGV[at + 1] .. ' ' .. now)
  redis.call('EXPIRE', key, {FLIGHT_S})
end
"""
