-- A standby can read nothing that joins an UNLOGGED table: neither a job, by job_status, nor what relays report.
-- A report of progress, at most one a second for each attempt that reports any, now costs about 170 bytes of WAL.
SET LOCAL lock_timeout = '5s';

ALTER TABLE job_progress SET LOGGED;
ALTER TABLE relay_status SET LOGGED;
