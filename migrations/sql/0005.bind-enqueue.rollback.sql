SET LOCAL lock_timeout = '5s';

CREATE FUNCTION outrider_enqueue(
    user_id text, preset text, content text, metadata jsonb DEFAULT '{}',
    priority integer DEFAULT 2, run_at timestamptz DEFAULT NULL
) RETURNS uuid LANGUAGE sql VOLATILE AS $$
    WITH job AS (
        INSERT INTO jobs (id, user_id, preset, content, metadata, priority, run_at)
        VALUES (outrider_uuid7(), outrider_enqueue.user_id, outrider_enqueue.preset, outrider_enqueue.content,
                outrider_enqueue.metadata, outrider_enqueue.priority,
                greatest(coalesce(outrider_enqueue.run_at, now()), '1970-01-01T00:00Z'))
        RETURNING id, user_id, preset, priority, run_at
    ), entry AS (
        INSERT INTO outbox (job_id, user_id, preset, priority, status, run_at, ready_at)
        SELECT id, job.user_id, job.preset, job.priority,
               (CASE WHEN job.run_at > now() THEN 'waiting' ELSE 'ready' END)::outbox_status,
               job.run_at,
               CASE WHEN job.run_at > now() THEN NULL ELSE clock_timestamp() END
        FROM job
    )
    INSERT INTO job_state_records (job_id, seq, to_state, attempt, reason)
    SELECT id, 0, 'PENDING', 0, 'enqueued' FROM job
    RETURNING job_id
$$;

-- Who might call the newer function may call the older one.
DO $$
DECLARE
    given CONSTANT aclitem[] := (SELECT proacl FROM pg_proc WHERE oid =
        'outrider_enqueue(text, text, text, jsonb, integer, timestamptz, double precision, integer, integer, text,
                          uuid)'::regprocedure);
    callable regprocedure;
    grantee text;
BEGIN
    IF given IS NULL THEN
        RETURN;
    END IF;
    FOREACH callable IN ARRAY ARRAY[
        'outrider_enqueue(text, text, text, jsonb, integer, timestamptz)'
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

DROP FUNCTION outrider_enqueue(
    text, text, text, jsonb, integer, timestamptz, double precision, integer, integer, text, uuid);
DROP FUNCTION outrider_enqueue_many(json, boolean);
DROP TYPE outrider_new_job;

ALTER FUNCTION outrider_same_throughput() RESET search_path;

CREATE OR REPLACE FUNCTION outrider_uuid7() RETURNS uuid LANGUAGE sql VOLATILE PARALLEL SAFE AS $$
    -- A random v4 uuid with its first 48 bits replaced by the milliseconds since 1970 and its version made 7.
    SELECT encode(set_bit(set_bit(
        overlay(uuid_send(gen_random_uuid())
                PLACING substring(int8send(floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint) FROM 3)
                FROM 1 FOR 6), 52, 1), 53, 1), 'hex')::uuid
$$;
