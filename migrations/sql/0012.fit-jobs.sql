-- A constraint is parsed anew by every statement that inserts. One that calls a function costs half of what nine cost.
SET LOCAL lock_timeout = '5s';

-- Whether a row of `jobs` keeps the limits of engine/limits.py; raises check_violation in its words. Without SET, which
-- would cost as much as the checks, for no name here is other than pg_catalog's.
CREATE FUNCTION outrider_job_fits(
    user_id text, preset text, content text, metadata jsonb, priority smallint, max_attempts smallint,
    timeout_seconds integer, run_at timestamptz, created_at timestamptz
) RETURNS boolean LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
DECLARE
    fault text;
BEGIN
    -- One expression for the usual case. What is NULL keeps its limit.
    IF (length(user_id) BETWEEN 1 AND 255 AND preset ~ '^[a-z0-9][a-z0-9_.-]{0,62}$'
        AND octet_length(content) BETWEEN 1 AND 262144 AND jsonb_typeof(metadata) = 'object'
        AND priority BETWEEN 1 AND 4 AND max_attempts BETWEEN 1 AND 25 AND timeout_seconds BETWEEN 1 AND 86400
        AND run_at BETWEEN '1970-01-01T00:00Z' AND '9999-01-01T00:00Z'
        AND created_at BETWEEN '1970-01-01T00:00Z' AND '9999-01-01T00:00Z') IS NOT FALSE
    THEN
        RETURN true;
    END IF;
    fault := CASE
        WHEN length(user_id) NOT BETWEEN 1 AND 255 THEN 'user_id: not 1 to 255 characters'
        WHEN preset !~ '^[a-z0-9][a-z0-9_.-]{0,62}$' THEN 'preset: not [a-z0-9][a-z0-9_.-]{0,62}'
        WHEN octet_length(content) NOT BETWEEN 1 AND 262144 THEN 'content: not 1 to 262144 bytes as UTF-8'
        WHEN jsonb_typeof(metadata) <> 'object' THEN 'metadata: not an object'
        WHEN priority NOT BETWEEN 1 AND 4 THEN 'priority: not 1 to 4'
        WHEN max_attempts NOT BETWEEN 1 AND 25 THEN 'max_attempts: not 1 to 25'
        WHEN timeout_seconds NOT BETWEEN 1 AND 86400 THEN 'timeout_seconds: not 1 to 86400'
        WHEN run_at NOT BETWEEN '1970-01-01T00:00Z' AND '9999-01-01T00:00Z'
        THEN 'run_at: not a time with a zone, up to the year 9999'
        -- A time that Python cannot hold would fail the claim of every job beside this one.
        ELSE 'created_at: not a time up to the year 9999'
    END;
    RAISE EXCEPTION USING ERRCODE = 'check_violation', CONSTRAINT = fault, MESSAGE = fault;
END $$;
-- Every statement that adds a job calls it.
GRANT EXECUTE ON FUNCTION
    outrider_job_fits(text, text, text, jsonb, smallint, smallint, integer, timestamptz, timestamptz) TO PUBLIC;

-- NOT VALID: the stored rows have passed the constraints that go, and need not be read again.
ALTER TABLE jobs
    ADD CONSTRAINT jobs_fit CHECK (outrider_job_fits(user_id, preset, content, metadata, priority, max_attempts,
                                                     timeout_seconds, run_at, created_at)) NOT VALID,
    DROP CONSTRAINT "user_id: not 1 to 255 characters",
    DROP CONSTRAINT "preset: not [a-z0-9][a-z0-9_.-]{0,62}",
    DROP CONSTRAINT "content: not 1 to 262144 bytes as UTF-8",
    DROP CONSTRAINT jobs_metadata_check,
    DROP CONSTRAINT "priority: not 1 to 4",
    DROP CONSTRAINT "max_attempts: not 1 to 25",
    DROP CONSTRAINT "timeout_seconds: not 1 to 86400",
    DROP CONSTRAINT "run_at: not a time with a zone, up to the year 9999",
    DROP CONSTRAINT jobs_created_at_check;
