-- The presets whose attempts this worker runs in processes of their own. What a dead worker ran apart cannot be why it
-- died. A worker of the older code, which does not tell, counts as one that runs nothing apart.
SET LOCAL lock_timeout = '5s';

ALTER TABLE workers ADD COLUMN apart text[] NOT NULL DEFAULT '{}';
