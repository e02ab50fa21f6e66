-- works with: 1
-- What a kind of record is stored in: a table of its own, made when the kind is first used.
CREATE TABLE kinds (
    kind text PRIMARY KEY,
    name text NOT NULL UNIQUE,
    indexes text[] NOT NULL
);
