SET LOCAL lock_timeout = '5s';

ALTER TABLE outbox SET (fillfactor = 85);
