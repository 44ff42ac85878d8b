-- spark-sql -d database=recall -d root=file:///data/recall -f deploy/ddl/activity.sql
CREATE TABLE IF NOT EXISTS ${database}.activity (
  `user_id` string,
  `event_ts` timestamp,
  `position` bigint,
  `sequence` string,
  `values` array<string>,
  `dt` string
)
USING parquet
PARTITIONED BY (dt)
LOCATION '${root}/activity';
