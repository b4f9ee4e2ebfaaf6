SET LOCAL lock_timeout = '5s';

ALTER TABLE workers DROP COLUMN apart;
