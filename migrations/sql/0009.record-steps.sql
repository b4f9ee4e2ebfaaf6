-- The step that an attempt began last: a job that kills its worker is named with it. An attempt may begin steps and
-- report no progress. Processes of the older code read a progress without a fraction as none.
SET LOCAL lock_timeout = '5s';

ALTER TABLE job_progress ADD COLUMN step text;
ALTER TABLE job_progress ALTER COLUMN fraction DROP NOT NULL;
