-- Stands in for Citus: its table of nodes and the functions that change it, without anything behind them.
CREATE SCHEMA citus_stub;
CREATE TYPE pg_catalog.noderole AS ENUM ('primary', 'secondary', 'unavailable');
CREATE TABLE citus_stub.pg_dist_node (
    nodeid serial PRIMARY KEY,
    groupid int NOT NULL,
    nodename text NOT NULL,
    nodeport int NOT NULL,
    noderole pg_catalog.noderole NOT NULL,
    nodecluster name NOT NULL,
    UNIQUE (nodename, nodeport)
);
CREATE UNIQUE INDEX one_primary ON citus_stub.pg_dist_node (groupid) WHERE noderole = 'primary';
ALTER TABLE citus_stub.pg_dist_node SET SCHEMA pg_catalog;
CREATE TABLE citus_stub.pg_dist_authinfo (nodeid int, rolename name, authinfo text, PRIMARY KEY (nodeid, rolename));
ALTER TABLE citus_stub.pg_dist_authinfo SET SCHEMA pg_catalog;
CREATE TABLE citus_stub.calls (number serial PRIMARY KEY, transaction xid8 DEFAULT pg_current_xact_id(), call text);

CREATE FUNCTION pg_catalog.citus_add_node(host text, port int, groupid int, role pg_catalog.noderole, cluster name)
RETURNS int LANGUAGE sql AS $$
    INSERT INTO citus_stub.calls (call) VALUES (format('add %s to %s as %s', port, groupid, role));
    INSERT INTO pg_catalog.pg_dist_node (groupid, nodename, nodeport, noderole, nodecluster)
    VALUES (groupid, host, port, role, cluster) RETURNING nodeid
$$;
CREATE FUNCTION pg_catalog.citus_set_coordinator_host(host text, port int, role pg_catalog.noderole, cluster name)
RETURNS void LANGUAGE sql AS $$
    SELECT pg_catalog.citus_add_node(host, port, 0, role, cluster)
$$;
CREATE FUNCTION pg_catalog.citus_remove_node(host text, port int)
RETURNS void LANGUAGE sql AS $$
    INSERT INTO citus_stub.calls (call) VALUES (format('remove %s', port));
    DELETE FROM pg_catalog.pg_dist_node WHERE nodename = host AND nodeport = port AND noderole <> 'primary'
$$;
CREATE FUNCTION pg_catalog.citus_update_node(id int, host text, port int, force boolean, lock_cooldown int)
RETURNS void LANGUAGE sql AS $$
    INSERT INTO citus_stub.calls (call) VALUES (format('move %s to %s:%s', id, host, port));
    UPDATE pg_catalog.pg_dist_node SET nodename = host, nodeport = port WHERE nodeid = id
$$;
