SET LOCAL lock_timeout = '5s';

ALTER TABLE outbox_events DROP COLUMN failures;
DROP TABLE operator_actions;
