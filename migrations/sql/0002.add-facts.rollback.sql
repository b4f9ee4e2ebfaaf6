SET LOCAL lock_timeout = '5s';
DROP INDEX outbox_events_quarantined;
DROP TABLE relay_facts;
ALTER TABLE workers DROP COLUMN drained;
