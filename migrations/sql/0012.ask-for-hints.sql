-- Idle processes ask for hints, and are told of ready jobs by the commit that adds them.
SET LOCAL lock_timeout = '5s';

-- The path of the function below (SET … FROM CURRENT), as in 0005.
SELECT set_config('search_path', format('%I, pg_temp', current_schema()), true);

-- Until when hints of ready jobs are wanted, in seconds since 1970. NOTIFY takes a lock of the whole cluster until its
-- transaction has ended, so it is sent only while idle processes ask for it. A sequence is outside of transactions:
-- every caller reads its present value, whatever the caller's snapshot is, and no dead row is left.
CREATE SEQUENCE hints_wanted_until AS bigint MINVALUE 0 START 0;
-- Every role that enqueues reads it.
GRANT SELECT ON SEQUENCE hints_wanted_until TO PUBLIC;
-- Who keeps the rows of workers may ask: the roles of workers and relays.
DO $$
DECLARE
    grantee text;
BEGIN
    FOR grantee IN
        SELECT CASE acl.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(acl.grantee)) END
        FROM pg_class c, aclexplode(coalesce(c.relacl, acldefault('r', c.relowner))) acl
        WHERE c.oid = 'workers'::regclass AND acl.privilege_type = 'UPDATE'
    LOOP
        EXECUTE format('GRANT SELECT, UPDATE ON SEQUENCE hints_wanted_until TO %s', grantee);
    END LOOP;
END $$;

-- Tells who waits that jobs of `presets` are ready when the caller's transaction commits, if anybody wants to know.
-- A payload has 8000 bytes at most; an empty one means any preset.
CREATE FUNCTION outrider_hint(presets text[]) RETURNS void LANGUAGE plpgsql VOLATILE SET search_path FROM CURRENT AS $$
DECLARE
    named text;
BEGIN
    IF pg_sequence_last_value('hints_wanted_until') > extract(epoch FROM clock_timestamp()) THEN
        named := array_to_string(ARRAY(SELECT DISTINCT unnest(presets)), ' ');
        PERFORM pg_notify('outrider_ready', CASE WHEN length(named) > 7000 THEN '' ELSE named END);
    END IF;
END $$;
-- Every statement that enqueues calls it. Anybody may NOTIFY anyway.
GRANT EXECUTE ON FUNCTION outrider_hint(text[]) TO PUBLIC;
