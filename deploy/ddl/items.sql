-- spark-sql -d database=recall -d root=file:///data/recall -f deploy/ddl/items.sql
-- Of a config with features the table has their columns too: the first publication declares it as it must be.
CREATE TABLE IF NOT EXISTS ${database}.items (
  `item_index` int,
  `prior` double,
  `dt` string
)
USING parquet
PARTITIONED BY (dt)
LOCATION '${root}/items';
