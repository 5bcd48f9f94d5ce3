// Three calls of a server: `Main TARGET` prints a whole answer, an answer that is left after three events, and a refusal.

import com.google.rpc.ErrorInfo
import dev.inferwire.v1.CompleteRequest
import dev.inferwire.v1.InferenceServiceGrpcKt.InferenceServiceCoroutineStub
import dev.inferwire.v1.StreamCompleteResponse
import dev.inferwire.v1.StreamCompleteResponse.EventCase
import dev.inferwire.v1.completeRequest
import io.grpc.ManagedChannelBuilder
import io.grpc.Status
import io.grpc.StatusException
import io.grpc.protobuf.StatusProto
import java.util.concurrent.TimeUnit
import kotlinx.coroutines.flow.Flow
import kotlinx.coroutines.flow.filter
import kotlinx.coroutines.flow.flow
import kotlinx.coroutines.flow.take
import kotlinx.coroutines.flow.toList
import kotlinx.coroutines.runBlocking

fun main(arguments: Array<String>) = runBlocking {
    val channel =
        ManagedChannelBuilder.forTarget(arguments.single())
            .usePlaintext()
            .keepAliveTime(30, TimeUnit.SECONDS)
            .maxInboundMessageSize(32 shl 20)
            .build()
    try {
        val stub = InferenceServiceCoroutineStub(channel).withDeadlineAfter(60, TimeUnit.SECONDS)

        val whole = stub.answer(scripted("""{"events": [{"text": "Hel"}, {"text": "lo"}]}""")).toList()
        println("text: " + whole.filter { it.hasText() }.joinToString("") { it.text.text })
        println("finish reason: " + whole.last().completion.finishReason)

        // Leaving the flow cancels the call, and that ends the generation.
        val some = stub.answer(scripted("""{"events": [{"text": "x", "repeat": 10000000}]}""")).take(3).toList()
        println("events: " + some.joinToString(" ") { it.eventCase.name })

        try {
            stub.answer(completeRequest { model = "nope"; prompt = "x" }).toList()
        } catch (error: StatusException) {
            println("refused: ${error.status.code} ${reason(error)}")
        }
    } finally {
        channel.shutdownNow().awaitTermination(10, TimeUnit.SECONDS)
    }
    Unit
}

/** What the scripted model of `inferwire serve --scripted` is to say. */
fun scripted(script: String): CompleteRequest = completeRequest {
    model = "scripted"
    prompt = script
}

/** A stream as the contract wants it read: an event of an unknown kind is skipped, and without a completion it has failed. */
fun InferenceServiceCoroutineStub.answer(request: CompleteRequest): Flow<StreamCompleteResponse> = flow {
    var isComplete = false
    streamComplete(request).filter { it.eventCase != EventCase.EVENT_NOT_SET }.collect { event ->
        isComplete = event.hasCompletion()
        emit(event)
    }
    if (!isComplete) throw Status.ABORTED.withDescription("the stream was truncated").asException()
}

/** The reason that the service gives; null: the failure is not its own. */
fun reason(error: StatusException): String? =
    StatusProto.fromThrowable(error)
        ?.detailsList
        ?.filter { it.`is`(ErrorInfo::class.java) }
        ?.map { it.unpack(ErrorInfo::class.java) }
        ?.firstOrNull { it.domain == "inferwire.dev" }
        ?.reason
