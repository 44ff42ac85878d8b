-- spark-sql -d database=recall -d root=file:///data/recall -f deploy/ddl/vocab.sql
CREATE TABLE IF NOT EXISTS ${database}.vocab (
  `feature` string,
  `index` int,
  `value` string,
  `count` bigint,
  `dt` string
)
USING parquet
PARTITIONED BY (dt)
LOCATION '${root}/vocab';
