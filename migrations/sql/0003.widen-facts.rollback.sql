SET LOCAL lock_timeout = '5s';

DELETE FROM relay_facts WHERE topic = 'maintenance';
ALTER TABLE relay_facts
    DROP CONSTRAINT relay_facts_topic_check,
    DROP CONSTRAINT relay_facts_state_check,
    ADD CONSTRAINT relay_facts_topic_check CHECK (topic IN ('jobs', 'results', 'dead-letters')),
    ADD CONSTRAINT relay_facts_state_check CHECK (state IN ('publishing', 'passing', 'misconfigured'));
