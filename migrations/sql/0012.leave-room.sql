-- A relay reserves each row before it publishes the row's wake-up. The new version of a row fits beside the old one, so
-- that no index is written, if a page is half empty when it is filled. Pages that are full already stay so.
SET LOCAL lock_timeout = '5s';

ALTER TABLE outbox SET (fillfactor = 50);
