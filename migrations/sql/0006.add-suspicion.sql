-- Who is to blame for a dead worker: a job that ran alone on it is charged a crash, jobs that ran beside others are only
-- suspected, and run again where a second crash tells. And how long a lease is, so that relays judge by their own clock.
SET LOCAL lock_timeout = '5s';

-- 0: not suspected. 1: ran on a worker that died, beside others. 2: must run alone.
ALTER TABLE outbox ADD COLUMN suspicion smallint NOT NULL DEFAULT 0;
-- Suspects are few, and no other row is in this index. The build reads the table once.
CREATE INDEX outbox_suspects ON outbox (suspicion, priority, position) WHERE suspicion > 0;

-- NULL: a worker of the older code, whose lease is known by expires_at alone.
ALTER TABLE workers ADD COLUMN lease_seconds double precision;
