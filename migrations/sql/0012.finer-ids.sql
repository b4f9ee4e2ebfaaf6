-- Ids of the same millisecond were in no order. They have a microsecond's now, as those that Python makes.
SET LOCAL lock_timeout = '5s';

CREATE OR REPLACE FUNCTION outrider_uuid7() RETURNS uuid LANGUAGE sql VOLATILE PARALLEL SAFE
-- RFC 9562 §5.7, method 3: twelve digits of the milliseconds since 1970, the version, three of the 4096ths of that
-- millisecond, and the variant and random bits of a v4 uuid.
RETURN (overlay(lpad(to_hex(floor(extract(epoch FROM clock_timestamp()) * 4096000)::bigint), 15, '0')
                PLACING '7' FROM 13 FOR 0)
        || substring(gen_random_uuid()::text FROM 20))::uuid;
