SET LOCAL lock_timeout = '5s';

CREATE OR REPLACE FUNCTION outrider_uuid7() RETURNS uuid LANGUAGE sql VOLATILE PARALLEL SAFE
-- A random v4 uuid with its first 48 bits replaced by the milliseconds since 1970 and its version made 7.
RETURN encode(set_bit(set_bit(
    overlay(uuid_send(gen_random_uuid())
            PLACING substring(int8send(floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint) FROM 3)
            FROM 1 FOR 6), 52, 1), 53, 1), 'hex')::uuid;
