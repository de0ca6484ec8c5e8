-- Takes turns for keys, as millstream_core::Bucket does: the two must stay the same.
-- Before it stands what makes `now`, in microseconds. For each key there are four arguments: microseconds between two
-- messages, the burst, how many messages there are, and 1 if those without a turn come again.
local NOTHING, LATE = 1e-6, 2000000
local answers = {}
for place, key in ipairs(KEYS) do
  local each, burst = tonumber(ARGV[place * 4 - 3]), tonumber(ARGV[place * 4 - 2])
  local number, returns = tonumber(ARGV[place * 4 - 1]), ARGV[place * 4] == '1'
  local at, taken, waiting = 0, 0, 0
  local kept = redis.call('GET', key)
  if kept then
    local words = {}
    for word in string.gmatch(kept, '%S+') do words[#words + 1] = tonumber(word) end
    at, taken, waiting = words[1] or 0, words[2] or 0, words[3] or 0
  end
  taken = math.max(taken - math.max(now - at, 0) / each, 0)
  local to_come = math.ceil(math.max(taken - burst - NOTHING, 0))
  waiting = math.min(waiting, to_come + math.max(math.floor(LATE / each), burst))
  local promised = math.min(number, math.max(waiting - to_come, 0))
  waiting = waiting - promised
  local fresh = number - promised
  local free = math.min(math.max(math.floor(burst - taken + NOTHING), 0), fresh)
  local first = (taken + free + 1 - burst) * each
  taken = taken + fresh
  local later = fresh - free
  if returns then waiting = waiting + later end
  local idle = taken * each
  if waiting > 0 then idle = idle + LATE end
  redis.call('SET', key, string.format('%.17g %.17g %.17g', now, taken, waiting),
    'PX', string.format('%d', math.max(math.ceil(idle / 1000), 1)))
  answers[#answers + 1] = promised + free
  answers[#answers + 1] = later > 0 and math.max(math.ceil(first), 0) or 0
end
return answers
