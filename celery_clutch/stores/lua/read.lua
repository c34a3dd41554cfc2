-- KEYS: record, pages, results, marks, jobs, data, members
-- Returns the fields of the record and the marks, each {name, value, name, value...}.
return {redis.call('HGETALL', KEYS[1]), redis.call('HGETALL', KEYS[4])}
