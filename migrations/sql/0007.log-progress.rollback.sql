SET LOCAL lock_timeout = '5s';

ALTER TABLE relay_status SET UNLOGGED;
ALTER TABLE job_progress SET UNLOGGED;
