-- spark-sql -d database=recall -d root=file:///data/recall -f deploy/ddl/top_n.sql
CREATE TABLE IF NOT EXISTS ${database}.top_n (
  `user_id` string,
  `items` array<struct<item_id:string,score:float>>,
  `source` string,
  `model_version` string,
  `dt` string
)
USING parquet
PARTITIONED BY (dt)
LOCATION '${root}/top_n';
