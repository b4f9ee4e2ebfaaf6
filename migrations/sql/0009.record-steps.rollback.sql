SET LOCAL lock_timeout = '5s';

DELETE FROM job_progress WHERE fraction IS NULL;
ALTER TABLE job_progress ALTER COLUMN fraction SET NOT NULL;
ALTER TABLE job_progress DROP COLUMN step;
