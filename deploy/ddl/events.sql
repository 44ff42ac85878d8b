-- spark-sql -d database=recall -d root=file:///data/recall -f deploy/ddl/events.sql
-- Of a config with features the table has their columns too: the first publication declares it as it must be.
CREATE TABLE IF NOT EXISTS ${database}.events (
  `user_id` string,
  `item_id` string,
  `event_ts` timestamp,
  `position` bigint,
  `example_age` double,
  `dt` string
)
USING parquet
PARTITIONED BY (dt)
LOCATION '${root}/events';
