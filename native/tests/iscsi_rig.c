#include "iscsi_rig.h"

#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "big_endian.h"
#include "check.h"
#include "client_feed.h"
#include "crc32c.h"

enum { SEGMENT = 4 << 20, FIRST_CMD_SN = 100, FIRST_STAT_SN = 7 };

struct bd_iscsi_terms iscsi_rig_terms(void)
{
    return (struct bd_iscsi_terms){.their_max_recv = 8192,
                                   .our_max_recv = 8192,
                                   .max_burst = 8192,
                                   .first_burst = 8192,
                                   .max_bursts = 2,
                                   .immediate_data = true,
                                   .max_held = 1 << 20};
}

void iscsi_rig_init(struct iscsi_rig *rig, const struct bd_iscsi_terms *terms)
{
    memset(rig, 0, sizeof *rig);
    rig_init(&rig->store, SEGMENT, RIG_SEGMENTS, ISCSI_VOLUME);
    rig_holes(&rig->store, ISCSI_KNOWN / RIG_CHUNK);
    rig->terms = *terms;
    rig->cmd_sn = FIRST_CMD_SN;
    rig->loop = bd_loop_new(1, 1, 1);
    CHECK(rig->loop != NULL);
    int pair[2];
    CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
    CHECK_EQ(fcntl(pair[0], F_SETFL, O_NONBLOCK), 0);
    int room = 1 << 20;
    CHECK_EQ(setsockopt(pair[0], SOL_SOCKET, SO_SNDBUF, &room, sizeof room), 0);
    rig->peer = pair[1];
    static struct bd_iscsi_lun luns[BD_ISCSI_LUNS];
    memset(luns, 0, sizeof luns);
    luns[0] =
        (struct bd_iscsi_lun){.volume = rig->store.volume, .size = ISCSI_VOLUME, .block_shift = 9};
    luns[1] = luns[0];
    luns[1].read_only = true;
    struct bd_iscsi_numbers numbers = {.exp_cmd_sn = FIRST_CMD_SN,
                                       .max_cmd_sn = FIRST_CMD_SN + BD_ISCSI_WINDOW - 1,
                                       .stat_sn = FIRST_STAT_SN};
    rig->client = bd_iscsi_client_new(pair[0], terms, &numbers, luns, NULL, 0);
    CHECK(rig->client != NULL);
    rig->client->loop = rig->loop;
}

void iscsi_rig_destroy(struct iscsi_rig *rig)
{
    struct bd_client *told;
    bd_loop_end(rig->loop);
    while ((told = bd_loop_news(rig->loop)) != NULL)
        bd_client_release(told);
    bd_client_release(rig->client);
    bd_loop_free(rig->loop);
    bd_arena_release(rig->worker.arena);
    close(rig->peer);
    rig_destroy(&rig->store);
}

enum bd_served iscsi_rig_feed(struct iscsi_rig *rig, const uint8_t *bytes, size_t length)
{
    struct bd_client *client = rig->client;
    if (!client_receives(client, bytes, length))
        return BD_SERVED_ALL;
    enum bd_served served = BD_SERVED_SOME;
    while (served == BD_SERVED_SOME &&
           (client->input.start < client->input.end || client->direct.at != NULL))
        served = client->protocol->serve(client, &rig->worker);
    return served;
}

static size_t put_crc(uint8_t *at, const uint8_t *data, size_t length)
{
    uint32_t crc = htole32(bd_crc32c(0, data, length));
    memcpy(at, &crc, sizeof crc);
    return sizeof crc;
}

size_t iscsi_rig_pdu(const struct iscsi_rig *rig, uint8_t *out, const uint8_t *bhs,
                     const uint8_t *data, size_t length)
{
    memcpy(out, bhs, BD_ISCSI_BHS);
    bd_put_be32(out + BD_ISCSI_AT_LENGTHS, (uint32_t)length);
    size_t at = BD_ISCSI_BHS;
    if (rig->terms.header_digest)
        at += put_crc(out + at, out, BD_ISCSI_BHS);
    if (length == 0)
        return at;
    size_t padded = bd_iscsi_padded(length);
    memcpy(out + at, data, length);
    memset(out + at + length, 0, padded - length);
    if (rig->terms.data_digest)
        put_crc(out + at + padded, out + at, padded);
    return at + padded + (rig->terms.data_digest ? BD_ISCSI_DIGEST : 0);
}

size_t iscsi_rig_command(struct iscsi_rig *rig, uint8_t *out, uint8_t code, uint32_t itt,
                         uint64_t offset, size_t length, const uint8_t *data, size_t immediate,
                         bool final)
{
    uint8_t bhs[BD_ISCSI_BHS] = {BD_ISCSI_SCSI_COMMAND};
    bhs[1] = code == BD_SCSI_READ_10 ? BD_ISCSI_READ : BD_ISCSI_WRITE;
    if (final)
        bhs[1] |= BD_ISCSI_FINAL;
    bd_put_be32(bhs + BD_ISCSI_AT_ITT, itt);
    bd_put_be32(bhs + BD_ISCSI_AT_EDTL, (uint32_t)length);
    bd_put_be32(bhs + BD_ISCSI_AT_CMD_SN, rig->cmd_sn++);
    uint8_t *cdb = bhs + BD_ISCSI_AT_CDB;
    cdb[0] = code;
    bd_put_be32(cdb + 2, (uint32_t)(offset / ISCSI_BLOCK));
    bd_put_be16(cdb + 7, (uint16_t)(length / ISCSI_BLOCK));
    return iscsi_rig_pdu(rig, out, bhs, data, immediate);
}

size_t iscsi_rig_data_out(const struct iscsi_rig *rig, uint8_t *out, uint32_t itt, uint32_t ttt,
                          uint32_t data_sn, size_t offset, const uint8_t *data, size_t length,
                          bool final)
{
    uint8_t bhs[BD_ISCSI_BHS] = {BD_ISCSI_DATA_OUT, final ? BD_ISCSI_FINAL : 0};
    bd_put_be32(bhs + BD_ISCSI_AT_ITT, itt);
    bd_put_be32(bhs + BD_ISCSI_AT_TTT, ttt);
    bd_put_be32(bhs + BD_ISCSI_AT_DATA_SN, data_sn);
    bd_put_be32(bhs + BD_ISCSI_AT_OFFSET, (uint32_t)offset);
    return iscsi_rig_pdu(rig, out, bhs, data, length);
}

static void receive_exactly(int fd, uint8_t *out, size_t length)
{
    if (length > 0)
        CHECK_EQ(recv(fd, out, length, MSG_WAITALL), length);
}

size_t iscsi_rig_receive(struct iscsi_rig *rig, uint8_t bhs[BD_ISCSI_BHS], uint8_t *data)
{
    uint8_t digest[4];
    uint8_t expected[4];
    receive_exactly(rig->peer, bhs, BD_ISCSI_BHS);
    if (rig->terms.header_digest) {
        receive_exactly(rig->peer, digest, sizeof digest);
        put_crc(expected, bhs, BD_ISCSI_BHS);
        CHECK(memcmp(digest, expected, sizeof digest) == 0);
    }
    size_t length = bd_get_be32(bhs + BD_ISCSI_AT_LENGTHS);
    if (length == 0)
        return 0;
    size_t padded = bd_iscsi_padded(length);
    static uint8_t whole[BD_ISCSI_MAX_TRANSFER];
    receive_exactly(rig->peer, whole, padded);
    if (rig->terms.data_digest) {
        receive_exactly(rig->peer, digest, sizeof digest);
        put_crc(expected, whole, padded);
        CHECK(memcmp(digest, expected, sizeof digest) == 0);
    }
    CHECK(data != NULL);
    memcpy(data, whole, length);
    return length;
}

void iscsi_rig_silent(struct iscsi_rig *rig)
{
    uint8_t byte;
    CHECK_EQ(recv(rig->peer, &byte, 1, MSG_DONTWAIT), -1);
}

void iscsi_rig_good(struct iscsi_rig *rig, uint32_t itt)
{
    uint8_t bhs[BD_ISCSI_BHS];
    CHECK_EQ(iscsi_rig_receive(rig, bhs, NULL), 0);
    CHECK_EQ(bhs[0], BD_ISCSI_SCSI_RESPONSE);
    CHECK_EQ(bhs[1], BD_ISCSI_FINAL);
    CHECK_EQ(bhs[2], 0);
    CHECK_EQ(bhs[3], 0);
    CHECK_EQ(bd_get_be32(bhs + BD_ISCSI_AT_ITT), itt);
}

size_t iscsi_rig_left(const struct iscsi_rig *rig)
{
    return rig->client->input.end - rig->client->input.start;
}
