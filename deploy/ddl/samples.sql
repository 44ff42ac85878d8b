-- spark-sql -d database=recall -d root=file:///data/recall -f deploy/ddl/samples.sql
-- Of a config with features the table has their columns too: the first publication declares it as it must be.
CREATE TABLE IF NOT EXISTS ${database}.samples (
  `user_id` string,
  `item_index` array<int>,
  `is_target` array<boolean>,
  `example_age` array<float>,
  `negatives` array<int>,
  `seen` array<int>,
  `dt` string,
  `split` string
)
USING parquet
PARTITIONED BY (dt, split)
LOCATION '${root}/samples';
