-- One job takes one lean statement, and idle processes are told of what is enqueued.
SET LOCAL lock_timeout = '5s';

-- The path of the functions below (SET … FROM CURRENT), as in 0005.
SELECT set_config('search_path', format('%I, pg_temp', current_schema()), true);

-- The fault of a job that is asked for, which `jobs` cannot find: it does not store these as they are asked for, or in a
-- type that is too narrow. NULL if there is none. Without SET, as outrider_job_fits.
CREATE FUNCTION outrider_fault(asked outrider_new_job) RETURNS text LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
DECLARE
    written CONSTANT text := asked.metadata;
BEGIN
    IF asked.job_id::text !~ '^.{14}7.{4}[89ab]' THEN
        RETURN 'job_id: not a version 7 UUID';
    -- The size as jsonb, which has no exponents, but without the spaces there.
    ELSIF octet_length(written) > 4096 AND octet_length(written::jsonb::text) > 262144
          AND octet_length(regexp_replace(written::jsonb::text,
                                          E'("(?:[^"\\\\]|\\\\.)*")|([:,]) ', E'\\1\\2', 'g')) > 262144
    THEN
        RETURN 'metadata: not 0 to 262144 bytes as JSON';
    -- The outermost object is at level 0.
    ELSIF length(written) > 128 AND length(written) - length(translate(written, '[{', '')) > 64
          AND written::jsonb @? 'strict $.**{64 to last} ? (@.type() == "array" || @.type() == "object")'
    THEN
        RETURN 'metadata: nested deeper than 64';
    ELSIF written ~ '[0-9][eE]|[0-9]{20}' THEN
        IF (SELECT max(abs(value::numeric)) > 1.7976931348623158e308
            FROM jsonb_path_query(written::jsonb, 'strict $.** ? (@.type() == "number")') AS found (value))
        THEN
            RETURN 'metadata: not a finite number';
        -- A double in full digits is accepted, such as 100000000000000000000. Each number of 15 digits and zeros is one.
        ELSIF (SELECT bool_or(CASE WHEN number NOT BETWEEN -9223372036854775808 AND 18446744073709551615
                                        AND number = trunc(number) AND length(rtrim(abs(number)::text, '0.')) > 15
                                   THEN number::float8::text::numeric <> number END)
               FROM jsonb_path_query(written::jsonb, 'strict $.** ? (@.type() == "number")') AS found (value),
                    LATERAL (SELECT value::numeric) AS n (number))
        THEN
            RETURN 'metadata: an integer beyond 64 bits';
        END IF;
    END IF;
    -- RFC 3339 and Python know no earlier time.
    IF asked.run_at < '0001-01-01T00:00Z' THEN
        RETURN 'run_at: not a time with a zone, up to the year 9999';
    ELSIF asked.priority NOT BETWEEN 1 AND 4 THEN
        RETURN 'priority: not 1 to 4';
    ELSIF asked.max_attempts NOT BETWEEN 1 AND 25 THEN
        RETURN 'max_attempts: not 1 to 25';
    ELSIF asked.delay_seconds NOT BETWEEN 0 AND 31536000 THEN
        RETURN 'delay_seconds: not 0 to 31536000';
    ELSIF asked.delay_seconds IS NOT NULL AND asked.run_at IS NOT NULL THEN
        RETURN 'delay_seconds: not together with run_at';
    ELSIF asked.traceparent !~ '^00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}$' THEN
        RETURN 'traceparent: not a W3C trace context';
    END IF;
    RETURN NULL;
END $$;

-- Enqueues one job under a new id: a third of what outrider_enqueue_many costs for one. Looks for no fault but those
-- that `jobs` finds: the callers have looked.
CREATE FUNCTION outrider_enqueue_new(
    user_id text, preset text, content text, metadata jsonb, priority integer, run_at timestamptz,
    delay_seconds double precision, max_attempts integer, timeout_seconds integer, traceparent text,
    OUT job_id uuid, OUT created_at timestamptz
) LANGUAGE plpgsql VOLATILE SET search_path FROM CURRENT AS $$
#variable_conflict use_variable
DECLARE
    -- A time that has passed means at once, however long ago it was.
    due CONSTANT timestamptz :=
        greatest(coalesce(run_at, now() + delay_seconds * interval '1 second', now()), '1970-01-01T00:00Z');
    later CONSTANT boolean := due > now();
BEGIN
    job_id := outrider_uuid7();
    created_at := clock_timestamp();
    WITH entry AS (
        INSERT INTO outbox (job_id, user_id, preset, priority, status, run_at, ready_at)
        VALUES (job_id, user_id, preset, priority, CASE WHEN later THEN 'waiting' ELSE 'ready' END::outbox_status, due,
                CASE WHEN later THEN NULL ELSE created_at END)
    ), audit AS (
        INSERT INTO job_state_records (job_id, seq, to_state, attempt, reason)
        VALUES (job_id, 0, 'PENDING', 0, 'enqueued')
    )
    INSERT INTO jobs (id, user_id, preset, content, metadata, priority, max_attempts, timeout_seconds, traceparent,
                      run_at, created_at)
    VALUES (job_id, user_id, preset, content, metadata, priority, max_attempts, timeout_seconds, traceparent, due,
            created_at);
    IF NOT later AND pg_sequence_last_value('hints_wanted_until') > extract(epoch FROM created_at) THEN
        PERFORM pg_notify('outrider_ready', preset);
    END IF;
END $$;

-- Enqueues a JSON array of objects with the members of outrider_new_job, in the caller's transaction: all or none.
-- Gives one row for each, in the order given. A job_id that exists with the same job is answered as the first call was.
-- A job_id that is another job's raises unique_violation. Without `strict` it is the one row, and has no created_at:
-- then nothing is kept, and the transaction can go on.
-- One plan for all calls of a session, which costs half as much as a plan for each, and one by index: a plan that was
-- made while `jobs` was empty must not scan the table once it is full.
CREATE OR REPLACE FUNCTION outrider_enqueue_many(jobs json, strict boolean DEFAULT true)
RETURNS TABLE (job_id uuid, created_at timestamptz, replayed boolean, traceparent text)
LANGUAGE plpgsql VOLATILE
SET search_path FROM CURRENT SET enable_seqscan = off SET plan_cache_mode = force_generic_plan
SET extra_float_digits = 1 AS $$
#variable_conflict use_column
DECLARE
    no_time CONSTANT text := 'run_at: not a time with a zone, up to the year 9999';
    taken_name CONSTANT text := 'job_id: in use by another job';
    asked outrider_new_job[];
    fresh uuid[];
    ready text[];
    fault text;
    detail text;
    taken uuid;
    gone boolean;
BEGIN
    IF NOT strict AND json_array_length(jobs) > 1 THEN
        -- The others of a refused call are taken back with this block. A single job that is refused wrote nothing.
        BEGIN
            RETURN QUERY
            SELECT e.job_id, e.created_at, e.replayed, e.traceparent FROM outrider_enqueue_many(jobs) e;
        EXCEPTION WHEN unique_violation THEN
            GET STACKED DIAGNOSTICS fault = CONSTRAINT_NAME, detail = PG_EXCEPTION_DETAIL;
            IF fault <> taken_name THEN
                RAISE;
            END IF;
            RETURN QUERY SELECT detail::uuid, NULL::timestamptz, false, NULL::text;
        END;
        RETURN;
    END IF;

    SELECT 'unknown member: ' || member INTO fault
    FROM json_array_elements(jobs) job, json_object_keys(job) member
    WHERE member NOT IN (SELECT attname FROM pg_attribute WHERE attrelid = 'outrider_new_job'::regclass)
    LIMIT 1;
    IF fault IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = fault;
    END IF;

    -- A time without a zone, or words such as `tomorrow`, would mean what the session makes of them. This is RFC 3339,
    -- and how PostgreSQL writes a timestamptz as JSON.
    IF EXISTS (
        SELECT FROM json_array_elements(jobs) job
        WHERE job ->> 'run_at' !~* ('^(-?infinity|[0-9]{4,6}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}([.][0-9]+)?'
                                    || '(Z|[+-][0-9]{2}:[0-9]{2}(:[0-9]{2})?)( BC)?)$')
    ) THEN
        RAISE EXCEPTION USING ERRCODE = 'check_violation', CONSTRAINT = no_time, MESSAGE = no_time;
    END IF;

    asked := ARRAY(
        SELECT ROW(user_id, preset, content, coalesce(metadata, '{}'), coalesce(priority, 2), run_at, delay_seconds,
                   max_attempts, timeout_seconds, traceparent, coalesce(job_id, outrider_uuid7()))::outrider_new_job
        FROM json_populate_recordset(NULL::outrider_new_job, jobs));

    SELECT broken INTO fault
    FROM (SELECT outrider_fault(a::outrider_new_job) AS broken FROM unnest(asked) a) AS looked
    WHERE broken IS NOT NULL
    LIMIT 1;
    IF fault IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'check_violation', CONSTRAINT = fault, MESSAGE = fault;
    END IF;

    -- In the order of ids: two calls that share two ids would otherwise deadlock.
    WITH job AS (
        INSERT INTO jobs (id, user_id, preset, content, metadata, priority, max_attempts, timeout_seconds, traceparent,
                          run_at)
        SELECT job_id, user_id, preset, content, metadata::jsonb, priority, max_attempts, timeout_seconds, traceparent,
               -- A time that has passed means at once, however long ago it was.
               greatest(coalesce(run_at, now() + delay_seconds * interval '1 second', now()), '1970-01-01T00:00Z')
        FROM unnest(asked) WITH ORDINALITY
        ORDER BY job_id, ordinality
        ON CONFLICT (id) DO NOTHING
        RETURNING id, user_id, preset, priority, run_at
    ), entry AS (
        INSERT INTO outbox (job_id, user_id, preset, priority, status, run_at, ready_at)
        SELECT id, user_id, preset, priority,
               (CASE WHEN run_at > now() THEN 'waiting' ELSE 'ready' END)::outbox_status, run_at,
               CASE WHEN run_at > now() THEN NULL ELSE clock_timestamp() END
        FROM job
    ), audit AS (
        INSERT INTO job_state_records (job_id, seq, to_state, attempt, reason)
        SELECT id, 0, 'PENDING', 0, 'enqueued' FROM job
    )
    SELECT array_agg(id), array_agg(DISTINCT preset) FILTER (WHERE run_at <= now()) INTO fresh, ready FROM job;
    IF ready IS NOT NULL THEN
        PERFORM outrider_hint(ready);
    END IF;

    IF cardinality(fresh) IS DISTINCT FROM cardinality(asked) THEN
        -- A statement of its own, whose snapshot shows the job that the insert may have waited for.
        SELECT a.job_id, j.id IS NULL INTO taken, gone
        FROM unnest(asked) a LEFT JOIN jobs j ON j.id = a.job_id
        WHERE (j.user_id, j.preset, j.content, j.metadata, j.priority, j.max_attempts, j.timeout_seconds)
              IS DISTINCT FROM
              (a.user_id, a.preset, a.content, a.metadata::jsonb, a.priority, a.max_attempts, a.timeout_seconds)
           OR a.run_at IS NOT NULL AND j.run_at <> greatest(a.run_at, '1970-01-01T00:00Z')
        LIMIT 1;
    END IF;
    IF gone THEN
        RAISE EXCEPTION USING ERRCODE = 'serialization_failure', MESSAGE = 'a job was deleted meanwhile: try again';
    ELSIF taken IS NOT NULL AND strict THEN
        -- No word of the other job, which may be another owner's.
        RAISE EXCEPTION USING ERRCODE = 'unique_violation', CONSTRAINT = taken_name, MESSAGE = taken_name,
                              DETAIL = taken::text;
    ELSIF taken IS NOT NULL THEN
        RETURN QUERY SELECT taken, NULL::timestamptz, false, NULL::text;
    ELSE
        RETURN QUERY
        SELECT a.job_id, j.created_at,
               f.id IS NULL OR row_number() OVER (PARTITION BY a.job_id ORDER BY a.ordinality) > 1, j.traceparent
        FROM unnest(asked) WITH ORDINALITY a
        JOIN jobs j ON j.id = a.job_id
        LEFT JOIN unnest(fresh) AS f (id) ON f.id = a.job_id
        ORDER BY a.ordinality;
    END IF;
END $$;

-- One job, as before. Its body is no SQL any more: that is planned anew by each call.
CREATE OR REPLACE FUNCTION outrider_enqueue(
    user_id text, preset text, content text, metadata jsonb DEFAULT '{}', priority integer DEFAULT 2,
    run_at timestamptz DEFAULT NULL, delay_seconds double precision DEFAULT NULL, max_attempts integer DEFAULT NULL,
    timeout_seconds integer DEFAULT NULL, traceparent text DEFAULT NULL, job_id uuid DEFAULT NULL
) RETURNS uuid LANGUAGE plpgsql VOLATILE SET search_path FROM CURRENT SET extra_float_digits = 1 AS $$
#variable_conflict use_variable
DECLARE
    fault text;
BEGIN
    metadata := coalesce(metadata, '{}');
    priority := coalesce(priority, 2);
    IF job_id IS NOT NULL THEN
        RETURN (SELECT enqueued.job_id
                FROM outrider_enqueue_many(json_build_array(json_build_object(
                    'user_id', user_id, 'preset', preset, 'content', content, 'metadata', metadata,
                    'priority', priority, 'run_at', run_at, 'delay_seconds', delay_seconds,
                    'max_attempts', max_attempts, 'timeout_seconds', timeout_seconds, 'traceparent', traceparent,
                    'job_id', job_id))) AS enqueued);
    END IF;
    fault := outrider_fault(ROW(user_id, preset, content, metadata::text, priority, run_at, delay_seconds, max_attempts,
                                timeout_seconds, traceparent, NULL)::outrider_new_job);
    IF fault IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'check_violation', CONSTRAINT = fault, MESSAGE = fault;
    END IF;
    RETURN (SELECT made.job_id
            FROM outrider_enqueue_new(user_id, preset, content, metadata, priority, run_at, delay_seconds, max_attempts,
                                      timeout_seconds, traceparent) AS made);
END $$;

-- Who may call the old functions may call what they call.
DO $$
DECLARE
    given CONSTANT aclitem[] :=
        (SELECT coalesce(proacl, acldefault('f', proowner))
         FROM pg_proc WHERE oid = 'outrider_enqueue_many(json, boolean)'::regprocedure);
    callable regprocedure;
    grantee text;
BEGIN
    FOREACH callable IN ARRAY ARRAY[
        'outrider_fault(outrider_new_job)',
        'outrider_enqueue_new(text, text, text, jsonb, integer, timestamptz, double precision, integer, integer, text)'
    ]::regprocedure[] LOOP
        EXECUTE format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', callable);
        FOR grantee IN
            SELECT CASE acl.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(acl.grantee)) END
            FROM aclexplode(given) acl
        LOOP
            EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO %s', callable, grantee);
        END LOOP;
    END LOOP;
END $$;
