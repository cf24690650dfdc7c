/* Bytes for a client of the loop that no worker serves: a test says when a round takes place. */
#ifndef BLOCKD_CLIENT_FEED_H
#define BLOCKD_CLIENT_FEED_H

#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "client.h"

/* Bytes arrive: first where the client wants them to land, the others behind what is left of its
 * input, which is exactly as long then, so that a sanitizer sees what is read beyond it. Whether
 * there is anything to serve: not while what is to land is not all there. */
static inline bool client_receives(struct bd_client *client, const uint8_t *bytes, size_t length)
{
    if (client->direct.at != NULL) {
        size_t landed = length < client->direct.left ? length : client->direct.left;
        memcpy(client->direct.at, bytes, landed);
        client->direct.at += landed;
        client->direct.left -= landed;
        bytes += landed;
        length -= landed;
        if (client->direct.left > 0)
            return false;
    }
    size_t have = client->input.end - client->input.start;
    uint8_t *input = malloc(have + length + (have + length == 0));
    CHECK(input != NULL);
    if (have > 0)
        memcpy(input, client->input.data + client->input.start, have);
    if (length > 0)
        memcpy(input + have, bytes, length);
    free(client->input.data);
    client->input.data = input;
    client->input.capacity = client->input.end = have + length;
    client->input.start = 0;
    return true;
}

#endif
