#!/bin/sh
# PostgreSQL's image runs this once, on an empty volume: a user with a database for each
# server, and for the searches of the workers.
set -eu

create() {
    # psql reads the password from its environment, so no list of processes shows it.
    DATABASE_SECRET="$2" psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --set "name=$1" \
        --username "${POSTGRES_USER:-postgres}" <<'SQL'
\getenv secret DATABASE_SECRET
CREATE ROLE :"name" LOGIN PASSWORD :'secret';
CREATE DATABASE :"name" OWNER :"name";
REVOKE CONNECT ON DATABASE :"name" FROM PUBLIC;
SQL
}

create prefect "$PREFECT_DATABASE_SECRET"
create mlflow "$MLFLOW_DATABASE_SECRET"
create optuna "$OPTUNA_DATABASE_SECRET"
