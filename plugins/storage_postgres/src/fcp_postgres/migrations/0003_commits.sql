-- works with: 2
-- The last commit of each connection. The number of a transaction does not tell whether it was the
-- one that committed: after a crash of the server another one may have the number of one that is lost.
CREATE TABLE commits (
    session text PRIMARY KEY,
    number bigint NOT NULL,
    at timestamptz NOT NULL
) WITH (fillfactor = 50);
