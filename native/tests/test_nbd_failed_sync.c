/* A write whose sync fails goes to the engine as one of nothing, which says what is wrong. */
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "big_endian.h"
#include "check.h"
#include "nbd_serve.h"
#include "nbd_wire.h"
#include "rig.h"

enum { SEGMENT = 1 << 20, VOLUME = 1 << 20, LENGTH = 4096, AT = 8192 };
static const uint64_t COOKIE = 0x1122334455667788;

static size_t put_write(uint8_t *out, enum bd_nbd_replies replies)
{
    bool extended = replies == BD_NBD_EXTENDED;
    size_t header = extended ? BD_NBD_EXTENDED_REQUEST : BD_NBD_REQUEST;
    memset(out, 0, header);
    bd_put_be32(out, extended ? BD_NBD_EXTENDED_REQUEST_MAGIC : BD_NBD_REQUEST_MAGIC);
    bd_put_be16(out + 4, BD_NBD_CMD_FLAG_FUA | (extended ? BD_NBD_CMD_FLAG_PAYLOAD_LEN : 0));
    bd_put_be16(out + 6, BD_NBD_CMD_WRITE);
    bd_put_be64(out + 8, COOKIE);
    bd_put_be64(out + 16, AT);
    if (extended)
        bd_put_be64(out + 24, LENGTH);
    else
        bd_put_be32(out + 24, LENGTH);
    memset(out + header, 7, LENGTH);
    return header + LENGTH;
}

static void test_it_keeps_the_offset_of_the_write(enum bd_nbd_replies replies)
{
    struct rig rig;
    rig_init(&rig, SEGMENT, 2, VOLUME);
    rig.files[0].fail_sync = -EIO;
    struct bd_loop *loop = bd_loop_new(1, 1, 1);
    CHECK(loop != NULL);
    int pair[2];
    CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair), 0);
    struct bd_nbd_terms terms = {
        .replies = replies, .size = VOLUME, .minimum_block = 1, .max_payload = VOLUME};
    uint8_t bytes[BD_NBD_EXTENDED_REQUEST + LENGTH];
    size_t length = put_write(bytes, replies);
    struct bd_client *client = bd_nbd_client_new(rig.volume, pair[0], &terms, bytes, length);
    CHECK(client != NULL);
    CHECK_EQ(bd_loop_add(loop, client), 0);

    struct pollfd news = {.fd = bd_loop_fd(loop), .events = POLLIN};
    CHECK_EQ(poll(&news, 1, 60000), 1);
    struct bd_client *told = bd_loop_news(loop);
    CHECK(told == client);
    pthread_mutex_lock(&client->lock);
    CHECK_EQ(client->mail_length, length - LENGTH);
    CHECK_EQ(bd_get_be32(client->mail), bd_get_be32(bytes));
    CHECK_EQ(bd_get_be16(client->mail + 4), BD_NBD_CMD_FLAG_FUA);
    CHECK_EQ(bd_get_be16(client->mail + 6), BD_NBD_CMD_WRITE);
    CHECK(bd_get_be64(client->mail + 8) == COOKIE);
    CHECK_EQ(bd_get_be64(client->mail + 16), AT);
    for (size_t at = 24; at < client->mail_length; at++)
        CHECK_EQ(client->mail[at], 0);
    pthread_mutex_unlock(&client->lock);
    bd_client_release(told);

    bd_loop_end(loop);
    while ((told = bd_loop_news(loop)) != NULL)
        bd_client_release(told);
    bd_client_release(client);
    bd_loop_free(loop);
    close(pair[1]);
    rig_destroy(&rig);
}

int main(void)
{
    test_it_keeps_the_offset_of_the_write(BD_NBD_SIMPLE);
    test_it_keeps_the_offset_of_the_write(BD_NBD_STRUCTURED);
    test_it_keeps_the_offset_of_the_write(BD_NBD_EXTENDED);
    return 0;
}
