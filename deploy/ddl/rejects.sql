-- spark-sql -d database=recall -d root=file:///data/recall -f deploy/ddl/rejects.sql
CREATE TABLE IF NOT EXISTS ${database}.rejects (
  `source` string,
  `reason` string,
  `raw` string,
  `dt` string
)
USING parquet
PARTITIONED BY (dt)
LOCATION '${root}/rejects';
