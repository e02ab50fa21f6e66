-- works with: 2
-- Large records lie in parts that fill a page each: half the time of a value that PostgreSQL cuts
-- into pieces of 2 KB itself. The parts of a record never change; the record says which they are.
CREATE SEQUENCE part_ids;
CREATE TABLE parts (
    id bigint NOT NULL,
    n int NOT NULL,
    data bytea NOT NULL,
    PRIMARY KEY (id, n)
) WITH (autovacuum_vacuum_scale_factor = 0.02);
ALTER TABLE parts ALTER COLUMN data SET STORAGE PLAIN;

-- By a trigger, since whoever writes a record does not know whether there was one with parts, and
-- to look would be a read that others conflict with.
CREATE FUNCTION drop_parts() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' OR NEW.parts IS DISTINCT FROM OLD.parts THEN
        EXECUTE format('DELETE FROM %I.parts WHERE id = $1', TG_TABLE_SCHEMA) USING OLD.parts;
    END IF;
    RETURN NULL;
END
$$;

DO $$
DECLARE
    kind_table text;
BEGIN
    FOR kind_table IN SELECT name FROM kinds LOOP
        EXECUTE format('ALTER TABLE %I ADD COLUMN parts bigint', kind_table);
        EXECUTE format(
            'CREATE TRIGGER drop_parts AFTER UPDATE OR DELETE ON %I FOR EACH ROW'
            ' WHEN (OLD.parts IS NOT NULL) EXECUTE FUNCTION drop_parts()', kind_table);
    END LOOP;
END
$$;
