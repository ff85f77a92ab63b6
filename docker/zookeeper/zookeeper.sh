#!/bin/sh
# One ZooKeeper server: ZOOKEEPER_ID=1 ZOOKEEPER_SERVERS=host1,host2,host3; without them it is alone.
set -eu
data=/var/lib/zookeeper/data
mkdir -p "$data"
echo "${ZOOKEEPER_ID:-1}" >"$data/myid"
{
    # Sessions last from 2 to 60 seconds, whatever ttl the members want in between.
    printf 'tickTime=1000\ninitLimit=20\nsyncLimit=5\nmaxSessionTimeout=60000\nmaxClientCnxns=0\n'
    printf 'dataDir=%s\nclientPort=2181\nadmin.enableServer=false\n' "$data"
    printf 'autopurge.purgeInterval=1\nautopurge.snapRetainCount=3\n4lw.commands.whitelist=srvr\n'
    # Whatever address this server's own name stands for.
    echo quorumListenOnAllIPs=true
    n=0
    for host in $(echo "${ZOOKEEPER_SERVERS:-}" | tr , ' '); do
        n=$((n + 1))
        echo "server.$n=$host:2888:3888"
    done
} >"$data/zoo.cfg"
# Several ways of logging lie there; the first one is taken.
exec java -Xmx128m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -Djava.net.preferIPv4Stack=true \
    -Dorg.slf4j.simpleLogger.defaultLogLevel=warn -cp '/usr/share/java/slf4j-simple.jar:/usr/share/java/*' \
    org.apache.zookeeper.server.quorum.QuorumPeerMain "$data/zoo.cfg"
