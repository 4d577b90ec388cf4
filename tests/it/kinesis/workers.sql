-- Nothing here knows a row that comes twice, and `id` tells in which order rows were stored.
create table readings (
    id bigserial, device text not null, seq bigint not null, at timestamptz not null, value float8 not null,
    value_score float8, anomaly boolean
);
create table minutes (
    id bigserial, device text not null, window_start timestamptz not null, window_end timestamptz not null,
    readings bigint not null, mean float8, lowest float8, last bigint
);
