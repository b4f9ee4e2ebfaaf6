-- A relay tells of its maintenance too, whatever the transport.
SET LOCAL lock_timeout = '5s';

ALTER TABLE relay_facts
    DROP CONSTRAINT relay_facts_topic_check,
    DROP CONSTRAINT relay_facts_state_check,
    ADD CONSTRAINT relay_facts_topic_check
        CHECK (topic IN ('jobs', 'results', 'dead-letters', 'maintenance')),
    ADD CONSTRAINT relay_facts_state_check
        CHECK (state IN ('publishing', 'passing', 'misconfigured', 'maintaining', 'failing'));
