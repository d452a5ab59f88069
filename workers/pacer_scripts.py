"""The Lua of pacing: one script per atomic step, all on Redis' own TIME in microseconds.

Owns: the texts only; pacer_steps.py gives each a typed function and lists the keys. The arithmetic is
that of batch.domain.gcra, against which the tests compare it.
Numbers are written with string.format, as tostring() keeps only 14 digits of a microsecond.
"""

from __future__ import annotations

from batch.domain.gcra import WINDOW_PARTS

_PRELUDE = """
local t = redis.call('TIME')
local now = t[1] * 1000000 + t[2]
local function amount(unit, cost)
  if unit == 0 then return 1 end
  if unit == 1 then return cost[1] end
  if unit == 3 then return cost[2] end
  return cost[1] - cost[2]
end
local function whole(x) return string.format('%.0f', x) end
"""

# Windows forget lazily: the oldest part still counted is o:D; parts older than the window leave the sum.
_WINDOW = """
local PARTS = """ + str(WINDOW_PARTS) + """
local function window(key, d)
  local width = d[5] / PARTS
  local index = math.floor(now / width)
  local sum = tonumber(redis.call('HGET', key, 'w:' .. d[1])) or 0
  local oldest = tonumber(redis.call('HGET', key, 'o:' .. d[1])) or index
  if oldest < index - 2 * PARTS then
    for i = oldest, oldest + 2 * PARTS do redis.call('HDEL', key, 'w:' .. d[1] .. ':' .. whole(i)) end
    sum = 0; oldest = index
  end
  while oldest < index - PARTS do
    local field = 'w:' .. d[1] .. ':' .. whole(oldest)
    local part = tonumber(redis.call('HGET', key, field))
    if part then sum = sum - part; redis.call('HDEL', key, field) end
    oldest = oldest + 1
  end
  if sum < 0 then sum = 0 end
  return {sum = sum, oldest = oldest, index = index, width = width, added = 0}
end
local function first_part(key, d, w)
  for i = w.oldest, w.index do
    if redis.call('HEXISTS', key, 'w:' .. d[1] .. ':' .. whole(i)) == 1 then return i end
  end
  return w.index
end
local function keep_window(key, d, w)
  redis.call('HSET', key, 'w:' .. d[1], tostring(w.sum + w.added), 'o:' .. d[1], whole(w.oldest))
  if w.added ~= 0 then
    redis.call('HINCRBYFLOAT', key, 'w:' .. d[1] .. ':' .. whole(w.index), tostring(w.added))
  end
end
"""

# The share of a limit in use follows the 429s of the last minute: 0.1 % is clean, 0.4 % is too much.
# A limit that was found by trying (max 1) is moved as a whole instead, by ADOPT.
_TUNE = """
local function tune(key, u, max, granted)
  if max >= 1 then return u end
  local v = redis.call('HMGET', key, 'uc', 'n', 'e')
  local since = tonumber(v[1]) or now
  local n = (tonumber(v[2]) or 0) + granted
  local e = tonumber(v[3]) or 0
  local minute = now - since >= 60000000
  if n >= 20 and e > 0.3 * n then u = math.max(0.05, u * 0.8)
  elseif e > 3 and e > 0.02 * n then u = math.max(math.min(u, 0.80), u - 0.02)
  elseif minute and n >= 20 and e > 0.1 * n then u = math.max(0.05, u * 0.8)
  elseif minute and e > 0.004 * n then u = math.max(math.min(u, 0.80), u - 0.01)
  elseif minute and e <= 0.001 * n then u = math.min(max, u < 0.80 and u * 1.1 or u + 0.002)
  elseif not minute then
    redis.call('HSET', key, 'u', tostring(u), 'uc', whole(since), 'n', whole(n))
    return u
  end
  redis.call('HSET', key, 'u', tostring(u), 'uc', whole(now), 'n', '0', 'e', '0')
  return u
end
"""

# KEYS: buckets. ARGV: json {b: buckets, c: costs, s: settled difference or null, a: ahead µs, ttl: ms}
LEASE = _PRELUDE + _WINDOW + _TUNE + """
local arg = cjson.decode(ARGV[1])
local fresh = 0
local use = 1
local start = now
local meters = {}
for b, key in ipairs(KEYS) do
  local conf = arg.b[b]
  local v = redis.call('HMGET', key, 'p', 'pc', 'pr', 'u', 'hold')
  if v[1] and tonumber(v[1]) > now then return {-1, v[1], v[2] or '', v[3] or ''} end
  local u = math.min(tonumber(v[4]) or conf.u, conf.m)
  if #conf.d > 0 then
    if not v[4] then fresh = 1 end
    if u < use then use = u end
  end
  if v[5] and tonumber(v[5]) > start then start = tonumber(v[5]) end
  for _, d in ipairs(conf.d) do
    local T = 1000000 / (d[3] * u)
    local tat = tonumber(redis.call('HGET', key, 't:' .. d[1]))
    if not tat then tat = d[5] > 0 and now or now + d[4] end
    local w = d[5] > 0 and window(key, d) or nil
    if arg.s and d[2] > 0 then
      local diff = amount(d[2], arg.s)
      tat = math.max(now - d[4], tat + diff * T)
      if w then w.added = w.added + math.max(-w.sum, diff) end
    end
    meters[#meters + 1] = {key = key, d = d, T = T, tat = tat, w = w}
  end
end
local slots = {}
local wait = 0
local cursor = start
for i, cost in ipairs(arg.c) do
  local slot = cursor
  for _, m in ipairs(meters) do
    if amount(m.d[2], cost) > 0 and m.tat - m.d[4] > slot then slot = m.tat - m.d[4] end
  end
  slot = math.ceil(slot)
  wait = slot - now
  for _, m in ipairs(meters) do
    local w = m.w
    if w and w.sum + w.added > 0 and w.sum + w.added + amount(m.d[2], cost) > m.d[6] then
      wait = math.max(wait, (first_part(m.key, m.d, w) + PARTS + 1) * w.width - now)
    end
  end
  if wait > arg.a then break end
  for _, m in ipairs(meters) do
    local c = amount(m.d[2], cost)
    if c > 0 then
      m.tat = math.max(m.tat, slot) + c * m.T
      if m.w then m.w.added = m.w.added + c end
    end
  end
  slots[i] = slot - now
  cursor = slot
  wait = 0
end
for _, m in ipairs(meters) do
  redis.call('HSET', m.key, 't:' .. m.d[1], whole(m.tat))
  if m.w then keep_window(m.key, m.d, m.w) end
end
for b, key in ipairs(KEYS) do
  if #slots > 0 then redis.call('HSET', key, 'last', whole(cursor)) end
  if #arg.b[b].d > 0 then
    local u = math.min(tonumber(redis.call('HGET', key, 'u')) or arg.b[b].u, arg.b[b].m)
    tune(key, u, arg.b[b].m, #slots)
  end
  redis.call('PEXPIRE', key, arg.ttl)
end
local answer = {now, math.ceil(wait), fresh, whole(use * 1000000)}
for i, s in ipairs(slots) do answer[4 + i] = s end
return answer
"""

# Slots return only while they are the last ones given: then the arrival times fall back exactly.
# ARGV: json {b: buckets, c: costs, last: µs of the last slot, before: µs of the slot before the first returned}
RETURN = _PRELUDE + _WINDOW + """
local arg = cjson.decode(ARGV[1])
for _, key in ipairs(KEYS) do
  if redis.call('HGET', key, 'last') ~= arg.last then return 0 end
end
for b, key in ipairs(KEYS) do
  local conf = arg.b[b]
  local u = math.min(tonumber(redis.call('HGET', key, 'u')) or conf.u, conf.m)
  for _, d in ipairs(conf.d) do
    local sum = 0
    for _, cost in ipairs(arg.c) do sum = sum + amount(d[2], cost) end
    local tat = tonumber(redis.call('HGET', key, 't:' .. d[1]))
    if tat then
      redis.call('HSET', key, 't:' .. d[1], whole(math.max(now - d[4], tat - sum * 1000000 / (d[3] * u))))
    end
    if d[5] > 0 then
      local w = window(key, d); w.added = -math.min(sum, w.sum); keep_window(key, d, w)
    end
  end
  redis.call('HSET', key, 'last', arg.before)
  redis.call('PEXPIRE', key, arg.ttl)
end
return 1
"""

# A 429: counted for the share in use; `hold` µs > 0 holds the whole bucket.
REFUSED = _PRELUDE + """
for _, key in ipairs(KEYS) do
  redis.call('HINCRBY', key, 'e', 1)
  local hold = tonumber(ARGV[1])
  if hold > 0 and now + hold > (tonumber(redis.call('HGET', key, 'hold')) or 0) then
    redis.call('HSET', key, 'hold', whole(now + hold))
  end
  redis.call('PEXPIRE', key, ARGV[2])
end
return 1
"""

# Headers lower what is believed to remain: ARGV json {d: [[name, tolerance µs, window µs, cap, T µs, remaining]]}
LOWER = _PRELUDE + _WINDOW + """
local arg = cjson.decode(ARGV[1])
for _, d in ipairs(arg.d) do
  if d[3] > 0 then
    local row = {d[1], 0, 0, 0, d[3], d[4]}
    local w = window(KEYS[1], row)
    local used = d[4] - d[6]
    if used > w.sum then w.added = used - w.sum; keep_window(KEYS[1], row, w) end
  else
    local floor = now + d[2] - d[6] * d[5]
    if d[6] < 1 then floor = now + d[2] + d[5] end
    local tat = tonumber(redis.call('HGET', KEYS[1], 't:' .. d[1])) or 0
    if floor > tat then redis.call('HSET', KEYS[1], 't:' .. d[1], whole(floor)) end
  end
end
redis.call('PEXPIRE', KEYS[1], arg.ttl)
return 1
"""

# Concurrency is shared out by demand (max-min fair) and lapses when a worker is not heard of.
# KEYS: share hash. ARGV: worker, cap, in use, want, expiry µs
SHARE = _PRELUDE + """
local me, cap, used, want = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local held, wants = 0, {want}
local all = redis.call('HGETALL', KEYS[1])
for i = 1, #all, 2 do
  if all[i] ~= me then
    local h, w, e = string.match(all[i + 1], '(%d+) (%d+) (%d+)')
    if tonumber(e) <= now then redis.call('HDEL', KEYS[1], all[i])
    else held = held + tonumber(h); wants[#wants + 1] = tonumber(w) end
  end
end
table.sort(wants)
local left, fair = cap, want
for i, w in ipairs(wants) do
  local level = math.floor(left / (#wants - i + 1))
  if want <= w then fair = math.min(want, math.max(1, level)); break end
  left = left - math.min(w, level)
end
local grant = math.max(0, math.min(fair, cap - held))
local keeps = math.max(used, grant)
if keeps == 0 and want == 0 then redis.call('HDEL', KEYS[1], me)
else
  redis.call('HSET', KEYS[1], me, whole(keeps) .. ' ' .. whole(want) .. ' ' .. whole(now + tonumber(ARGV[5])))
end
redis.call('PEXPIRE', KEYS[1], math.ceil(tonumber(ARGV[5]) / 500))
return grant
"""

PAUSE = _PRELUDE + """
redis.call('HSET', KEYS[1], 'p', whole(now + tonumber(ARGV[1])), 'pc', ARGV[2], 'pr', ARGV[3])
redis.call('PEXPIRE', KEYS[1], math.max(tonumber(ARGV[4]), tonumber(ARGV[1]) / 1000 + 1000))
return 1
"""

RESUME = """
redis.call('HDEL', KEYS[1], 'p', 'pc', 'pr', 'hold')
return 1
"""

# Looking for a limit that nobody stated: what was seen is added up until a step takes it into account.
# KEYS: found hash. ARGV: started, refused, crowded, busy s, pressing, longest Retry-After s, ttl ms
TELL = _PRELUDE + """
for i, name in ipairs({'n', 'r', 'c', 'b', 'p'}) do
  if tonumber(ARGV[i]) ~= 0 then redis.call('HINCRBYFLOAT', KEYS[1], name, ARGV[i]) end
end
local asked = tonumber(redis.call('HGET', KEYS[1], 'a') or 0)
if tonumber(ARGV[6]) > asked then redis.call('HSET', KEYS[1], 'a', ARGV[6]) end
redis.call('PEXPIRE', KEYS[1], ARGV[7])
local answer = {now}
local held = redis.call('HMGET', KEYS[1], 's', 'n', 'r', 'c', 'b', 'p', 'a')
for i, value in ipairs(held) do answer[i + 1] = value or '' end
return answer
"""

# One worker at a time makes a step. ARGV: state before, after; started, refused, crowded, busy s, pressing; ttl ms
ADOPT = """
if (redis.call('HGET', KEYS[1], 's') or '') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 's', ARGV[2])
for i, name in ipairs({'n', 'r', 'c', 'b', 'p'}) do
  if tonumber(ARGV[i + 2]) ~= 0 then redis.call('HINCRBYFLOAT', KEYS[1], name, string.format('%.9f', -ARGV[i + 2])) end
end
redis.call('HDEL', KEYS[1], 'a')
redis.call('PEXPIRE', KEYS[1], ARGV[8])
return 1
"""

# Long windows after a loss of Redis, each once: ARGV json {w: [[dim, window µs, [[part start ms, amount]]]], ttl: ms}
SEED = _PRELUDE + _WINDOW + """
local arg = cjson.decode(ARGV[1])
for _, row in ipairs(arg.w) do
  local d = {row[1], 0, 0, 0, row[2], 0}
  if redis.call('HSETNX', KEYS[1], 'seeded:' .. row[1], '1') == 1 then
    local w = window(KEYS[1], d)
    for _, part in ipairs(row[3]) do
      local index = math.floor(part[1] * 1000 / w.width)
      if index >= w.index - PARTS and index <= w.index then
        redis.call('HINCRBYFLOAT', KEYS[1], 'w:' .. row[1] .. ':' .. whole(index), tostring(part[2]))
        w.sum = w.sum + part[2]
        if index < w.oldest then w.oldest = index end
      end
    end
    keep_window(KEYS[1], d, w)
  end
end
redis.call('PEXPIRE', KEYS[1], arg.ttl)
return 1
"""

# What was sent while Redis was away: ARGV json {w: [[dim, window µs, amount]], ttl: ms}
COUNT = _PRELUDE + _WINDOW + """
local arg = cjson.decode(ARGV[1])
for _, row in ipairs(arg.w) do
  local d = {row[1], 0, 0, 0, row[2], 0}
  local w = window(KEYS[1], d)
  w.added = row[3]
  keep_window(KEYS[1], d, w)
end
redis.call('PEXPIRE', KEYS[1], arg.ttl)
return 1
"""
