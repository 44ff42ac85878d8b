-- spark-sql -d database=recall -d root=file:///data/recall -f deploy/ddl/vectors.sql
CREATE TABLE IF NOT EXISTS ${database}.vectors (
  `user_id` string,
  `item_index` int,
  `item_id` string,
  `vector` array<float>,
  `dt` string,
  `kind` string
)
USING parquet
PARTITIONED BY (dt, kind)
LOCATION '${root}/vectors';
