SET LOCAL lock_timeout = '5s';

ALTER TABLE jobs
    ADD CONSTRAINT "user_id: not 1 to 255 characters" CHECK (length(user_id) BETWEEN 1 AND 255) NOT VALID,
    ADD CONSTRAINT "preset: not [a-z0-9][a-z0-9_.-]{0,62}" CHECK (preset ~ '^[a-z0-9][a-z0-9_.-]{0,62}$') NOT VALID,
    ADD CONSTRAINT "content: not 1 to 262144 bytes as UTF-8"
        CHECK (octet_length(content) BETWEEN 1 AND 262144) NOT VALID,
    ADD CONSTRAINT jobs_metadata_check CHECK (jsonb_typeof(metadata) = 'object') NOT VALID,
    ADD CONSTRAINT "priority: not 1 to 4" CHECK (priority BETWEEN 1 AND 4) NOT VALID,
    ADD CONSTRAINT "max_attempts: not 1 to 25" CHECK (max_attempts BETWEEN 1 AND 25) NOT VALID,
    ADD CONSTRAINT "timeout_seconds: not 1 to 86400" CHECK (timeout_seconds BETWEEN 1 AND 86400) NOT VALID,
    ADD CONSTRAINT "run_at: not a time with a zone, up to the year 9999"
        CHECK (run_at BETWEEN '1970-01-01T00:00Z' AND '9999-01-01T00:00Z') NOT VALID,
    ADD CONSTRAINT jobs_created_at_check
        CHECK (created_at BETWEEN '1970-01-01T00:00Z' AND '9999-01-01T00:00Z') NOT VALID,
    DROP CONSTRAINT jobs_fit;

DROP FUNCTION outrider_job_fits(text, text, text, jsonb, smallint, smallint, integer, timestamptz, timestamptz);
