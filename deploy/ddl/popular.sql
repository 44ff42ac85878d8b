-- spark-sql -d database=recall -d root=file:///data/recall -f deploy/ddl/popular.sql
CREATE TABLE IF NOT EXISTS ${database}.popular (
  `window` string,
  `rank` int,
  `item_id` string,
  `count` bigint,
  `dt` string
)
USING parquet
PARTITIONED BY (dt)
LOCATION '${root}/popular';
