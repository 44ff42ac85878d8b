-- spark-sql -d database=recall -d root=file:///data/recall -f deploy/ddl/related.sql
CREATE TABLE IF NOT EXISTS ${database}.related (
  `source` string,
  `item_id` string,
  `items` array<struct<item_id:string,score:float>>,
  `dt` string
)
USING parquet
PARTITIONED BY (dt)
LOCATION '${root}/related';
