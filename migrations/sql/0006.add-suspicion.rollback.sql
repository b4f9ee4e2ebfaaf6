SET LOCAL lock_timeout = '5s';

ALTER TABLE workers DROP COLUMN lease_seconds;
DROP INDEX outbox_suspects;
ALTER TABLE outbox DROP COLUMN suspicion;
