/* An NBD server that does no work: it answers every request from one block of memory and keeps
 * nothing. It shows how much of a figure is the client, the socket and the protocol.
 *
 *   limit PORT SIZE     serves one export of SIZE bytes, whatever it is called, on loopback
 *
 * A thread for each connection: one recv, all complete requests, one writev. Simple replies only.
 * For benchmarks: it trusts its clients. */
#define _GNU_SOURCE
#include <endian.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

enum { MAX_BLOCK = 32 << 20, INPUT = 2 * MAX_BLOCK, MAX_PIECES = 512 };

static uint64_t export_size;
static uint8_t *block; /* what every read tells */

static void put16(uint8_t *at, uint16_t value)
{
    value = htobe16(value);
    memcpy(at, &value, 2);
}

static void put32(uint8_t *at, uint32_t value)
{
    value = htobe32(value);
    memcpy(at, &value, 4);
}

static void put64(uint8_t *at, uint64_t value)
{
    value = htobe64(value);
    memcpy(at, &value, 8);
}

static uint32_t get32(const uint8_t *at)
{
    uint32_t value;
    memcpy(&value, at, 4);
    return be32toh(value);
}

static bool take(int fd, void *data, size_t length)
{
    return length == 0 || recv(fd, data, length, MSG_WAITALL) == (ssize_t)length;
}

static bool give(int fd, const void *data, size_t length)
{
    const uint8_t *at = data;
    while (length > 0) {
        ssize_t sent = send(fd, at, length, MSG_NOSIGNAL);
        if (sent <= 0)
            return false;
        at += sent;
        length -= (size_t)sent;
    }
    return true;
}

static bool reply_option(int fd, uint32_t option, uint32_t type, const void *data, uint32_t length)
{
    uint8_t header[20];
    put64(header, UINT64_C(0x3e889045565a9));
    put32(header + 8, option);
    put32(header + 12, type);
    put32(header + 16, length);
    return give(fd, header, sizeof header) && give(fd, data, length);
}

/* Fixed newstyle: INFO and GO are answered, EXPORT_NAME too; everything else is unknown. */
static bool negotiate(int fd)
{
    enum { EXPORT_NAME = 1, ABORT = 2, INFO = 6, GO = 7, ACK = 1, REP_INFO = 3 };
    const uint16_t flags = 0x0d | 0x100; /* HAS_FLAGS, FLUSH, FUA, MULTI_CONN */
    uint8_t greeting[18] = "NBDMAGICIHAVEOPT";
    put16(greeting + 16, 3);
    uint8_t client[4];
    if (!give(fd, greeting, sizeof greeting) || !take(fd, client, sizeof client))
        return false;
    for (;;) {
        uint8_t header[16];
        static const uint32_t unsupported = 0x80000001;
        if (!take(fd, header, sizeof header))
            return false;
        uint32_t option = get32(header + 8);
        uint32_t length = get32(header + 12);
        uint8_t data[8192];
        if (length > sizeof data || !take(fd, data, length))
            return false;
        if (option == EXPORT_NAME) {
            uint8_t reply[134] = {0};
            put64(reply, export_size);
            put16(reply + 8, flags);
            return give(fd, reply, (client[3] & 2) != 0 ? 10 : sizeof reply);
        }
        if (option == INFO || option == GO) {
            uint8_t info[12];
            put16(info, 0);
            put64(info + 2, export_size);
            put16(info + 10, flags);
            if (!reply_option(fd, option, REP_INFO, info, sizeof info) ||
                !reply_option(fd, option, ACK, NULL, 0))
                return false;
            if (option == GO)
                return true;
        } else if (!reply_option(fd, option, option == ABORT ? ACK : unsupported, NULL, 0) ||
                   option == ABORT) {
            return false;
        }
    }
}

static bool give_pieces(int fd, struct iovec *pieces, int count)
{
    while (count > 0) {
        ssize_t sent = writev(fd, pieces, count);
        if (sent <= 0)
            return false;
        while (count > 0 && (size_t)sent >= pieces->iov_len) {
            sent -= (ssize_t)pieces->iov_len;
            pieces++;
            count--;
        }
        if (count > 0) {
            pieces->iov_base = (uint8_t *)pieces->iov_base + sent;
            pieces->iov_len -= (size_t)sent;
        }
    }
    return true;
}

/* All complete requests of the input: their replies leave together. False at the end. */
static bool serve(int fd, const uint8_t *input, size_t *start, size_t end)
{
    static const size_t header = 28;
    uint8_t replies[MAX_PIECES / 2][16];
    struct iovec pieces[MAX_PIECES];
    int count = 0;
    bool on = true;
    for (int i = 0; i < MAX_PIECES / 2 && end - *start >= header; i++) {
        const uint8_t *at = input + *start;
        uint16_t command = (uint16_t)(at[6] << 8 | at[7]);
        uint32_t length = get32(at + 24);
        if (command == 2 || length > MAX_BLOCK) {
            on = false;
            break;
        }
        size_t taken = header + (command == 1 ? length : 0);
        if (end - *start < taken)
            break;
        *start += taken;
        put32(replies[i], 0x67446698);
        put32(replies[i] + 4, 0);
        memcpy(replies[i] + 8, at + 8, 8);
        pieces[count++] = (struct iovec){replies[i], 16};
        if (command == 0)
            pieces[count++] = (struct iovec){block, length};
    }
    return give_pieces(fd, pieces, count) && on;
}

static void *run(void *argument)
{
    int fd = (int)(intptr_t)argument;
    uint8_t *input = malloc(INPUT);
    size_t start = 0;
    size_t end = 0;
    if (input != NULL && negotiate(fd)) {
        for (;;) {
            if (start > 0 && (start == end || INPUT - end < INPUT / 2)) {
                memmove(input, input + start, end - start);
                end -= start;
                start = 0;
            }
            ssize_t got = recv(fd, input + end, INPUT - end < 1 << 20 ? INPUT - end : 1 << 20, 0);
            if (got <= 0)
                break;
            end += (size_t)got;
            size_t before;
            bool on;
            do {
                before = start;
                on = serve(fd, input, &start, end);
            } while (on && start != before);
            if (!on)
                break;
        }
    }
    close(fd);
    free(input);
    return NULL;
}

int main(int count, char **arguments)
{
    if (count != 3) {
        fprintf(stderr, "usage: %s PORT SIZE\n", arguments[0]);
        return 2;
    }
    export_size = strtoull(arguments[2], NULL, 10);
    block = malloc(MAX_BLOCK);
    if (block == NULL)
        return 1;
    for (size_t i = 0; i < MAX_BLOCK; i++)
        block[i] = (uint8_t)(i * 2654435761u >> 13);
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    int on = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_port = htons((uint16_t)atoi(arguments[1])),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (bind(listener, (struct sockaddr *)&address, sizeof address) < 0 ||
        listen(listener, 128) < 0) {
        perror("limit");
        return 1;
    }
    for (;;) {
        int fd = accept(listener, NULL, NULL);
        if (fd < 0)
            return 1;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        pthread_t thread;
        if (pthread_create(&thread, NULL, run, (void *)(intptr_t)fd) != 0)
            close(fd);
        else
            pthread_detach(thread);
    }
}
