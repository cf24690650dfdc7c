/* Keeps a kernel NBD device alive over restarts of its server, and over moves to another one:
 *
 *     nbd-reconnect EXPORT INDEX DEAD_SECONDS ADDRESS PORT [ADDRESS PORT]...
 *
 * The device /dev/nbdINDEX was attached by nbd-client over netlink. This tells the kernel to hold
 * requests for DEAD_SECONDS when a connection has died, waits for the kernel's message that one
 * has, negotiates a new connection with the first server that lets it in, and gives that to the
 * kernel (NBD_CMD_RECONFIGURE). nbd-client 3.27 does the same for -persist, with one address; 3.24,
 * which is Debian 12's, does not. Runs until it is killed.
 */
#include <errno.h>
#include <arpa/inet.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <endian.h>
#include <linux/genetlink.h>
#include <linux/nbd-netlink.h>
#include <linux/netlink.h>
#include <netinet/in.h>
#include <netinet/tcp.h>

#define RETRY_MS 100
#define REQUEST_ROOM 256 /* the longest request has six attributes */
#define ANSWER_ROOM 8192 /* a page and more: what the kernel makes at most for a message of these  \
                          */
#define NAME_LIMIT 255
#define ADDRESS_LIMIT 8
#define PATIENCE_S 5 /* for one server to answer: it may be stopped */

static const uint64_t nbd_magic = 0x4e42444d41474943;
static const uint64_t option_magic = 0x49484156454f5054;
static const uint64_t reply_magic = 0x0003e889045565a9;
enum { option_go = 7, reply_ack = 1, reply_info = 3, fixed_newstyle = 1, no_zeroes = 2 };

/* --- netlink -------------------------------------------------------------------------------- */

struct message {
    union {
        struct nlmsghdr header;
        char room[ANSWER_ROOM];
    };
};

static void die(const char *what)
{
    fprintf(stderr, "nbd-reconnect: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void *put(struct message *message, int type, const void *value, size_t length)
{
    struct nlattr *attribute =
        (struct nlattr *)(message->room + NLMSG_ALIGN(message->header.nlmsg_len));
    attribute->nla_type = (uint16_t)type;
    attribute->nla_len = (uint16_t)(NLA_HDRLEN + length);
    if (length)
        memcpy((char *)attribute + NLA_HDRLEN, value, length);
    message->header.nlmsg_len =
        NLMSG_ALIGN(message->header.nlmsg_len) + NLA_ALIGN(attribute->nla_len);
    return attribute;
}

/* Ends the nest that `put` began with no bytes: its length is what came since. */
static void end_nest(struct message *message, struct nlattr *nest)
{
    nest->nla_type |= NLA_F_NESTED;
    nest->nla_len = (uint16_t)(message->room + message->header.nlmsg_len - (char *)nest);
}

static void begin(struct message *message, int family, int command)
{
    struct genlmsghdr generic = {.cmd = (uint8_t)command, .version = 1};
    memset(message->room, 0, REQUEST_ROOM);
    message->header.nlmsg_type = (uint16_t)family;
    message->header.nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK;
    message->header.nlmsg_len = NLMSG_LENGTH(sizeof generic);
    memcpy(NLMSG_DATA(&message->header), &generic, sizeof generic);
}

static void receive(int netlink, struct message *answer)
{
    ssize_t length = recv(netlink, answer->room, sizeof answer->room, 0);
    if (length < 0)
        die("netlink");
    if (!NLMSG_OK(&answer->header, (size_t)length)) {
        errno = EBADMSG;
        die("netlink");
    }
}

/* Sends a request; returns 0 or the kernel's errno. The answer before the ACK goes to `answer`. */
static int ask(int netlink, struct message *request, struct message *answer)
{
    struct message received;
    if (send(netlink, request->room, request->header.nlmsg_len, 0) < 0)
        die("netlink");
    for (;;) {
        receive(netlink, &received);
        if (received.header.nlmsg_type == NLMSG_ERROR)
            return -((struct nlmsgerr *)NLMSG_DATA(&received.header))->error;
        if (answer)
            memcpy(answer->room, received.room, received.header.nlmsg_len);
    }
}

static struct nlattr *find(void *attributes, size_t length, int type)
{
    char *at = attributes, *end = at + length;
    while (at + NLA_HDRLEN <= end) {
        struct nlattr *attribute = (struct nlattr *)at;
        if (attribute->nla_len < NLA_HDRLEN || at + attribute->nla_len > end)
            return NULL;
        if ((attribute->nla_type & NLA_TYPE_MASK) == type)
            return attribute;
        at += NLA_ALIGN(attribute->nla_len);
    }
    return NULL;
}

static void *content(struct nlattr *attribute)
{
    if (!attribute) {
        errno = ENOENT;
        die("netlink attribute");
    }
    return (char *)attribute + NLA_HDRLEN;
}

static struct nlattr *find_in(struct message *message, int type)
{
    char *attributes = (char *)NLMSG_DATA(&message->header) + GENL_HDRLEN;
    return find(attributes, (size_t)(message->room + message->header.nlmsg_len - attributes), type);
}

static int open_netlink(void)
{
    int netlink = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_GENERIC);
    struct sockaddr_nl address = {.nl_family = AF_NETLINK};
    if (netlink < 0 || bind(netlink, (struct sockaddr *)&address, sizeof address) < 0)
        die("netlink");
    return netlink;
}

/* The number of the family "nbd", and of its multicast group, in which dead links are told. */
static int resolve(int netlink, uint32_t *group)
{
    struct message request, answer;
    begin(&request, GENL_ID_CTRL, CTRL_CMD_GETFAMILY);
    put(&request, CTRL_ATTR_FAMILY_NAME, NBD_GENL_FAMILY_NAME, sizeof NBD_GENL_FAMILY_NAME);
    errno = ask(netlink, &request, &answer);
    if (errno)
        die("no nbd module");
    uint16_t family = *(uint16_t *)content(find_in(&answer, CTRL_ATTR_FAMILY_ID));
    struct nlattr *groups = find_in(&answer, CTRL_ATTR_MCAST_GROUPS);
    struct nlattr *first = content(groups); /* there is one */
    size_t length = (size_t)(first->nla_len - NLA_HDRLEN);
    *group = *(uint32_t *)content(find(content(first), length, CTRL_ATTR_MCAST_GRP_ID));
    return family;
}

/* Sets the dead connection timeout and, if `connection` is not -1, hands a connection over. */
static int reconfigure(int netlink, int family, uint32_t index, uint64_t dead_s, int connection)
{
    struct message request;
    begin(&request, family, NBD_CMD_RECONFIGURE);
    put(&request, NBD_ATTR_INDEX, &index, sizeof index);
    put(&request, NBD_ATTR_DEAD_CONN_TIMEOUT, &dead_s, sizeof dead_s);
    if (connection >= 0) {
        uint32_t fd = (uint32_t)connection;
        struct nlattr *sockets = put(&request, NBD_ATTR_SOCKETS, NULL, 0);
        struct nlattr *item = put(&request, NBD_SOCK_ITEM, NULL, 0);
        put(&request, NBD_SOCK_FD, &fd, sizeof fd);
        end_nest(&request, item);
        end_nest(&request, sockets);
    }
    return ask(netlink, &request, NULL);
}

/* --- NBD ------------------------------------------------------------------------------------ */

static int read_all(int connection, void *bytes, size_t length)
{
    return recv(connection, bytes, length, MSG_WAITALL) == (ssize_t)length ? 0 : -1;
}

static int negotiate(int connection, const char *name)
{
    struct __attribute__((packed)) {
        uint64_t magic, option;
        uint16_t flags;
    } greeting;
    struct __attribute__((packed)) {
        uint32_t client_flags;
        uint64_t magic;
        uint32_t option, length, name_length;
        char rest[NAME_LIMIT + 2];
    } go;
    struct __attribute__((packed)) {
        uint64_t magic;
        uint32_t option, type, length;
    } reply;
    char payload[4096];
    uint32_t name_length = (uint32_t)strlen(name);

    if (read_all(connection, &greeting, sizeof greeting) || be64toh(greeting.magic) != nbd_magic ||
        be64toh(greeting.option) != option_magic)
        return -1;
    memset(&go, 0, sizeof go);
    go.client_flags = htobe32(be16toh(greeting.flags) & (fixed_newstyle | no_zeroes));
    go.magic = htobe64(option_magic);
    go.option = htobe32(option_go);
    go.length = htobe32(4 + name_length + 2);
    go.name_length = htobe32(name_length);
    memcpy(go.rest, name, name_length);
    size_t length = sizeof go - sizeof go.rest + name_length + 2;
    if (send(connection, &go, length, MSG_NOSIGNAL) != (ssize_t)length)
        return -1;
    for (;;) {
        if (read_all(connection, &reply, sizeof reply) || be64toh(reply.magic) != reply_magic ||
            be32toh(reply.length) > sizeof payload)
            return -1;
        if (be32toh(reply.length) && read_all(connection, payload, be32toh(reply.length)))
            return -1;
        if (be32toh(reply.type) == reply_ack)
            return 0;
        if (be32toh(reply.type) != reply_info)
            return -1;
    }
}

/* A connection in transmission, or -1 while this server does not serve it. */
static int connect_once(const struct sockaddr_in *address, const char *name)
{
    const struct timeval patience = {.tv_sec = PATIENCE_S}, forever = {0};
    int yes = 1, connection = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (connection < 0)
        die("socket");
    setsockopt(connection, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    setsockopt(connection, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    if (connect(connection, (const struct sockaddr *)address, sizeof *address) == 0 &&
        negotiate(connection, name) == 0) {
        setsockopt(connection, SOL_SOCKET, SO_RCVTIMEO, &forever, sizeof forever);
        setsockopt(connection, SOL_SOCKET, SO_SNDTIMEO, &forever, sizeof forever);
        setsockopt(connection, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
        return connection;
    }
    close(connection);
    return -1;
}

int main(int count, char **arguments)
{
    const struct timespec retry = {.tv_nsec = RETRY_MS * 1000000};
    struct sockaddr_in addresses[ADDRESS_LIMIT];
    int servers = (count - 4) / 2;
    uint32_t group;

    if (count < 6 || count % 2 || servers > ADDRESS_LIMIT || strlen(arguments[1]) > NAME_LIMIT) {
        fprintf(stderr, "usage: nbd-reconnect EXPORT INDEX DEAD_SECONDS ADDRESS PORT"
                        " [ADDRESS PORT]...\n");
        return 2;
    }
    for (int at = 0; at < servers; at++) {
        char **each = arguments + 4 + 2 * at;
        addresses[at] = (struct sockaddr_in){.sin_family = AF_INET};
        addresses[at].sin_port = htons((uint16_t)strtoul(each[1], NULL, 10));
        if (inet_pton(AF_INET, each[0], &addresses[at].sin_addr) != 1) {
            fprintf(stderr, "nbd-reconnect: %s is no address\n", each[0]);
            return 2;
        }
    }
    const char *name = arguments[1];
    uint32_t index = (uint32_t)strtoul(arguments[2], NULL, 10);
    uint64_t dead_s = strtoul(arguments[3], NULL, 10);
    int control = open_netlink(), events = open_netlink();
    int family = resolve(control, &group);
    if (setsockopt(events, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, &group, sizeof group) < 0)
        die("NETLINK_ADD_MEMBERSHIP");
    errno = reconfigure(control, family, index, dead_s, -1);
    if (errno)
        die("NBD_CMD_RECONFIGURE");
    printf("watching nbd%u\n", index);
    fflush(stdout);
    for (;;) {
        struct message event;
        int connection, at = 0;
        receive(events, &event);
        struct genlmsghdr *generic = NLMSG_DATA(&event.header);
        if (event.header.nlmsg_type != family || generic->cmd != NBD_CMD_LINK_DEAD ||
            *(uint32_t *)content(find_in(&event, NBD_ATTR_INDEX)) != index)
            continue;
        while ((connection = connect_once(&addresses[at], name)) < 0) {
            at = (at + 1) % servers;
            if (at == 0)
                nanosleep(&retry, NULL);
        }
        errno = reconfigure(control, family, index, dead_s, connection);
        if (errno)
            die("NBD_CMD_RECONFIGURE");
        close(connection); /* the kernel has it */
        printf("nbd%u has a new connection, to server %d\n", index, at + 1);
        fflush(stdout);
    }
}
