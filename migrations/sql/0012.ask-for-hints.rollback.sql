SET LOCAL lock_timeout = '5s';

DROP FUNCTION outrider_hint(text[]);
DROP SEQUENCE hints_wanted_until;
