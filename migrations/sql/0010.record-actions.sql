-- What operators did by hand, and how often an event could not be published. Processes of the older code know neither.
SET LOCAL lock_timeout = '5s';

-- Append-only. `target` names a row of the kind `target_kind`, perhaps one that is gone; `before` and `after` are what
-- the action changed of it, and NULL stands for no row. `actor` is who the operator says to be, `role` who the
-- database knows.
CREATE TABLE operator_actions (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at          timestamptz NOT NULL DEFAULT clock_timestamp(),
    actor       text NOT NULL,
    role        text NOT NULL DEFAULT session_user,
    action      text NOT NULL,
    target_kind text NOT NULL,
    target      text NOT NULL,
    reason      text NOT NULL,
    before      jsonb,
    after       jsonb
);
CREATE INDEX operator_actions_target ON operator_actions (target_kind, target, id);

-- Since the event was written or published again by hand. A growing pause follows each failure.
ALTER TABLE outbox_events ADD COLUMN failures smallint NOT NULL DEFAULT 0;
