/* iSCSI commands that wait for the limits of their volume, in sessions of the loop. */
#include <string.h>
#include <unistd.h>

#include "big_endian.h"
#include "check.h"
#include "iscsi_client.h"
#include "iscsi_rig.h"

enum { BLOCK = 512, SPACE = 64 << 10, SECOND = 1000000000 };

static uint8_t stream[SPACE];
static uint8_t payload[SPACE];
static uint8_t got[SPACE];
static struct bd_limit limit;

/* LUN 0 is limited to `bytes` a second without a burst; LUN 1, of the same volume, is not. */
static void set(uint64_t bytes)
{
    uint64_t rates[BD_LIMITS] = {[BD_LIMIT_BYTES] = bytes};
    bd_limit_set(&limit, rates, 0, bd_loop_monotonic_ns());
}

static void init(struct iscsi_rig *rig)
{
    struct bd_iscsi_terms terms = iscsi_rig_terms();
    iscsi_rig_init(rig, &terms);
    bd_limit_init(&limit);
    iscsi_client(rig->client)->luns[0].limit = &limit;
    uint64_t seed = 7;
    random_bytes(&seed, payload, sizeof payload);
}

static void destroy(struct iscsi_rig *rig)
{
    iscsi_rig_destroy(rig);
    bd_limit_destroy(&limit);
}

static void feed(struct iscsi_rig *rig, size_t length)
{
    CHECK_EQ(iscsi_rig_feed(rig, stream, length), BD_SERVED_ALL);
    CHECK_EQ(iscsi_rig_left(rig), 0);
}

static size_t put_read(struct iscsi_rig *rig, uint8_t *out, uint32_t itt, uint8_t lun)
{
    size_t length = iscsi_rig_command(rig, out, BD_SCSI_READ_10, itt, 0, BLOCK, NULL, 0, true);
    out[BD_ISCSI_AT_LUN + 1] = lun;
    return length;
}

static size_t put_write(struct iscsi_rig *rig, uint8_t *out, uint32_t itt, uint64_t offset)
{
    return iscsi_rig_command(rig, out, BD_SCSI_WRITE_10, itt, offset, BLOCK, payload, BLOCK, true);
}

static size_t put_flush(struct iscsi_rig *rig, uint8_t *out, uint32_t itt)
{
    uint8_t bhs[BD_ISCSI_BHS] = {BD_ISCSI_SCSI_COMMAND, BD_ISCSI_FINAL};
    bd_put_be32(bhs + BD_ISCSI_AT_ITT, itt);
    bd_put_be32(bhs + BD_ISCSI_AT_CMD_SN, rig->cmd_sn++);
    bhs[BD_ISCSI_AT_CDB] = BD_SCSI_SYNCHRONIZE_CACHE_10;
    return iscsi_rig_pdu(rig, out, bhs, NULL, 0);
}

static void expect_data(struct iscsi_rig *rig, uint32_t itt)
{
    uint8_t bhs[BD_ISCSI_BHS];
    CHECK_EQ(iscsi_rig_receive(rig, bhs, got), BLOCK);
    CHECK_EQ(bhs[0], BD_ISCSI_DATA_IN);
    CHECK_EQ(bd_get_be32(bhs + BD_ISCSI_AT_ITT), itt);
}

/* The worker finds that the time has come at which the client wants to be looked at. */
static void come_due(struct iscsi_rig *rig)
{
    CHECK(rig->client->due_ns != 0);
    CHECK(rig->client->due_ns <= bd_loop_monotonic_ns() + BD_LIMIT_SLICE_NS);
    rig->client->due_ns = 0;
    CHECK(rig->client->protocol->serve(rig->client, &rig->worker) != BD_SERVED_STOP);
}

static void no_command_of_a_unit_overtakes_one_that_waits(void)
{
    struct iscsi_rig rig;
    init(&rig);
    set(1);
    size_t length = put_write(&rig, stream, 1, 0); /* goes on, and fills the bucket */
    length += put_write(&rig, stream + length, 2, BLOCK);
    length += put_flush(&rig, stream + length, 3);
    length += put_read(&rig, stream + length, 4, 0);
    feed(&rig, length);
    iscsi_rig_good(&rig, 1);
    iscsi_rig_silent(&rig);
    CHECK_EQ(bd_iscsi_client_open(rig.client, 0), 3);
    come_due(&rig);
    iscsi_rig_silent(&rig);
    set(0);
    come_due(&rig);
    iscsi_rig_good(&rig, 2);
    uint8_t bhs[BD_ISCSI_BHS]; /* the flush is a job: its answer may come before the read's */
    bool flushed = false;
    for (int i = 0; i < 2; i++) {
        size_t bytes = iscsi_rig_receive(&rig, bhs, got);
        flushed |= bd_get_be32(bhs + BD_ISCSI_AT_ITT) == 3;
        CHECK_EQ(bytes, bd_get_be32(bhs + BD_ISCSI_AT_ITT) == 3 ? 0 : BLOCK);
    }
    CHECK(flushed);
    CHECK_EQ(rig.store.journal->synced_lsn, rig.store.journal->next_lsn - 1);
    CHECK_EQ(bd_iscsi_client_open(rig.client, -1), 0);
    CHECK_EQ(rig.client->due_ns, 0);
    destroy(&rig);
}

static void others_go_on_while_one_waits(void)
{
    struct iscsi_rig rig;
    init(&rig);
    set(1);
    size_t length = put_read(&rig, stream, 1, 0);
    length += put_read(&rig, stream + length, 2, 0);
    length += put_read(&rig, stream + length, 3, 1);
    uint8_t ping[BD_ISCSI_BHS] = {BD_ISCSI_NOP_OUT | BD_ISCSI_IMMEDIATE, BD_ISCSI_FINAL};
    bd_put_be32(ping + BD_ISCSI_AT_ITT, 4);
    bd_put_be32(ping + BD_ISCSI_AT_TTT, BD_ISCSI_NO_TAG);
    length += iscsi_rig_pdu(&rig, stream + length, ping, NULL, 0);
    feed(&rig, length);
    expect_data(&rig, 1);
    expect_data(&rig, 3);
    uint8_t bhs[BD_ISCSI_BHS];
    CHECK_EQ(iscsi_rig_receive(&rig, bhs, NULL), 0);
    CHECK_EQ(bd_get_be32(bhs + BD_ISCSI_AT_ITT), 4);
    iscsi_rig_silent(&rig);
    set(1000000000);
    come_due(&rig);
    expect_data(&rig, 2);
    destroy(&rig);
}

/* Data that was asked for counts as held until its command has gone on. */
static void collected_data_waits_within_its_bound(void)
{
    enum { LONG = 16384, BURST = 8192 };
    struct iscsi_rig rig;
    init(&rig);
    set(1);
    feed(&rig, put_write(&rig, stream, 1, 0));
    iscsi_rig_good(&rig, 1);
    size_t length = iscsi_rig_command(&rig, stream, BD_SCSI_WRITE_10, 2, 0, LONG, payload, 0, true);
    feed(&rig, length);
    uint8_t bhs[BD_ISCSI_BHS];
    length = 0;
    for (uint32_t i = 0; i < 2; i++) {
        CHECK_EQ(iscsi_rig_receive(&rig, bhs, NULL), 0);
        CHECK_EQ(bhs[0], BD_ISCSI_R2T);
        length += iscsi_rig_data_out(&rig, stream + length, 2, bd_get_be32(bhs + BD_ISCSI_AT_TTT),
                                     0, i * BURST, payload + i * BURST, BURST, true);
    }
    feed(&rig, length);
    iscsi_rig_silent(&rig);
    CHECK_EQ(iscsi_client(rig.client)->held, LONG);
    set(0);
    come_due(&rig);
    iscsi_rig_good(&rig, 2);
    CHECK_EQ(iscsi_client(rig.client)->held, 0);
    struct bd_read_fault fault;
    CHECK_EQ(bd_volume_read(rig.store.volume, 0, LONG, got, true, &fault), 0);
    CHECK(memcmp(got, payload, LONG) == 0);
    destroy(&rig);
}

/* A full window of commands waits, and all of them are answered, a round at a time. */
static void a_window_waits_and_goes_on(void)
{
    struct iscsi_rig rig;
    init(&rig);
    set(1);
    feed(&rig, put_write(&rig, stream, 1000, 0));
    iscsi_rig_good(&rig, 1000);
    for (uint32_t itt = 0; itt < BD_ISCSI_WINDOW; itt++)
        feed(&rig, itt % 2 == 0 ? put_read(&rig, stream, itt, 0) : put_write(&rig, stream, itt, 0));
    iscsi_rig_silent(&rig);
    CHECK_EQ(bd_iscsi_client_open(rig.client, -1), BD_ISCSI_WINDOW);
    struct bd_held held = bd_limit_held(&limit);
    CHECK_EQ(held.waiting, 1); /* the others have not asked */
    CHECK_EQ(held.count, 0);
    set(0);
    come_due(&rig);
    for (uint32_t itt = 0; itt < BD_ISCSI_WINDOW; itt++) {
        if (itt % 2 == 0)
            expect_data(&rig, itt);
        else
            iscsi_rig_good(&rig, itt);
    }
    CHECK_EQ(rig.client->due_ns, 0);
    destroy(&rig);
}

/* What the engine is to have wait goes along with its data; the first one has its place. */
static void a_stop_takes_along_what_waits(void)
{
    struct iscsi_rig rig;
    init(&rig);
    set(1);
    size_t length = put_write(&rig, stream, 1, 0);
    length += put_write(&rig, stream + length, 2, BLOCK);
    length += put_read(&rig, stream + length, 3, 0);
    feed(&rig, length);
    iscsi_rig_good(&rig, 1);
    bd_iscsi_client_interrupt(rig.client);
    const struct bd_iscsi_command *command = bd_iscsi_client_commands(rig.client);
    CHECK_EQ(command->itt, 2);
    CHECK_EQ(command->state, BD_ISCSI_WAITING);
    CHECK(command->reservation.made);
    CHECK_EQ(command->got, BLOCK);
    CHECK(memcmp(command->action.data, payload, BLOCK) == 0);
    CHECK_EQ(command->next->itt, 3);
    CHECK_EQ(command->next->state, BD_ISCSI_WAITING);
    CHECK(!command->next->reservation.made);
    rig.client->due_ns = 0; /* a client that stops is not served */
    CHECK_EQ(rig.client->protocol->serve(rig.client, &rig.worker), BD_SERVED_ALL);
    iscsi_rig_silent(&rig);
    destroy(&rig);
}

int main(void)
{
    no_command_of_a_unit_overtakes_one_that_waits();
    others_go_on_while_one_waits();
    collected_data_waits_within_its_bound();
    a_window_waits_and_goes_on();
    a_stop_takes_along_what_waits();
    return 0;
}
