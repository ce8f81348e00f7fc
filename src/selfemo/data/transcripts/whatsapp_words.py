# ruff: noqa: RUF001  (words of many languages)
"""The words that WhatsApp itself writes into an export, as patterns.

WhatsApp writes in the language of the phone. A pattern names the words, or their stems, in the languages of
most phones; where the form of a line tells what it is, whatsapp.py needs none. A line in another language
stays as what was said: a word too many is better than a message lost.
"""

from __future__ import annotations

import re


def _any(patterns: str) -> str:
    """One pattern for any of the patterns, which stand in lines of their own or between " | "."""
    return "|".join(p.strip() for p in re.split(r"\n| \| ", patterns) if p.strip())


_I = re.IGNORECASE

MEDIA = re.compile(
    _any("""
    media | médias? | medien | mediet | medij | mídia | multim[eéi]d | medya | медиа | медіа | πολυμέσ
    phương tiện
    מדיה | وسائط | ميديا | मीडिया | মিডিয়া | மீடியா | మీడియా | メディア | 미디어 | 媒體 | 媒体 | สื่อ
    """),
    _I,
)
"""Stems of "media", inside the `<...>` that stands for a file that was not exported."""

_OMITTED = _any(r"""
    omitted | omitid[oa] | ocultad[oa] | ocult[oa] | omess[oaie] | omise? | omisă | weggelassen
    ausgeschlossen
    weggelaten | utelämna[dt]\w* | utela[tdk]\w* | udeladt | jätetty pois | pominię\w* | vynechán\w*
    kihagyva
    опущен\w* | пропущен\w* | παραλείφθηκε | dahil edilmedi | disertakan | dihilangkan | bị lược
    הושמט\w* | محذوف\w* | छोड़ \S+ | 省略\w* | 略過 | 생략\w* | 제외\w*
    """)
_KIND = _any("""
    image | photo | video | video note | video message | voice message | audio | gif | sticker | document
    contact card
    bild | foto | videonachricht | videonotiz | sprachnachricht | dokument | kontaktkarte
    imagen | vídeo | documento | tarjeta de contacto | imagem | áudio | figurinha | cartão do contato
    immagine | adesivo | scheda contatto | vidéo | autocollant | fiche de contact | afbeelding
    contactkaart
    """)
OMITTED = re.compile(rf"(?:{_OMITTED})\b", _I)
"""Words for "omitted", inside `<...>` or behind the mark of an iPhone ("image omitted")."""
KIND_OMITTED = re.compile(rf"(?:{_KIND}) (?:{_OMITTED}|absente?|manquante?)\.?", _I)
"""The whole of what stands for a file, known without a mark."""

ATTACHED = re.compile(
    _any("""
    attached | angehängt | anhang | joint | adjunt | anexad | anexo | allegat | bijgevoegd | bijlage
    bifoga | vedlagt | vedhæftet | liitet | załącz | přilož | csatol | ataşat | ekli | eklendi
    terlampir | dilampirkan
    прикреп | добавлен | вложен | додано | συνημμέν | đính kèm | מצורף | مرفق | संलग्न | 添付 | 附件
    附加 | 첨부
    """),
    _I,
)
"""Stems of "attached", beside the name of a file."""

_MESSAGE = _any("""
    messa | mensa | nachricht | bericht | meddeland | besked | melding | viesti | wiadomo | zpráv
    üzenet | mesaj | pesan
    сообщ | повідом | μήνυμα | tin nhắn | הודעה | رسالة | मैसेज | मेसेज | संदेश | メッセージ | 메시지
    消息 | 訊息
    """)
_CHANGED = _any("""
    edited | editó | editad[oa] | bearbeitet | modifi[ée] | modificat | bewerkt | redigera | redigeret
    redigert
    muokat | edytowan | upraven | szerkesztet | düzenlendi | diedit | изменен | изменён | отредакт
    змінено | επεξεργ
    chỉnh sửa | נערכה | تعديل | संपादित | 編集 | 编辑 | 編輯 | 수정
    """)
EDITED = re.compile(rf"(?=.*(?:{_MESSAGE})).*(?:{_CHANGED})", _I)
"""Stems of "message" and "edited", both inside the `<...>` at the end of a message."""

DELETED = re.compile(
    _any("""
    (?:this )?message (?:was )?deleted(?: by admin .{1,60})?
    you deleted this message(?: as admin| for everyone)?
    (?:diese )?nachricht (?:wurde )?(?:von einem admin )?gelöscht
    (?:du hast|sie haben) diese nachricht gelöscht
    este mensaje (?:fue eliminado|se eliminó) | (?:se eliminó|has eliminado|eliminaste) este mensaje
    ce message a été supprimé | (?:vous avez|tu as) supprimé ce message
    mensagem apagada | (?:essa|esta) mensagem foi (?:apagada|eliminada)
    (?:você apagou|apagaste|eliminou) esta mensagem
    (?:questo )?messaggio (?:è stato )?eliminato | hai eliminato questo messaggio
    (?:dit )?bericht (?:is )?verwijderd | (?:je|u) hebt dit bericht verwijderd
    detta meddelande (?:togs bort|har raderats) | du (?:tog bort|raderade) detta meddelande
    denne (?:besked|meldingen) (?:blev|ble) slettet | tämä viesti poistettiin | poistit tämän viestin
    ta wiadomość została usunięta | usun(?:ięto|ąłeś|ęłaś) tę wiadomość
    acest mesaj a fost șters | tato zpráva byla (?:smazána|odstraněna) | ez az üzenet törölve lett
    bu mesaj silindi | bu mesajı sildiniz | pesan ini (?:telah )?dihapus
    anda (?:telah )?menghapus pesan ini
    (?:это|данное) сообщение (?:было )?удалено | вы удалили (?:это|данное) сообщение
    (?:це )?повідомлення (?:було )?видалено | ви видалили це повідомлення
    הודעה זו נמחקה | מחקת (?:את ה)?הודעה (?:זו|הזו) | تم حذف هذه الرسالة | (?:لقد )?حذفت هذه الرسالة
    (?:आपने )?यह (?:मैसेज|मेसेज|संदेश) (?:डिलीट|हटा).{0,30}
    このメッセージは削除されました | (?:あなたは)?このメッセージを削除しました
    이 메시지는 삭제되었습니다 | 삭제된 메시지입니다
    此(?:消息|訊息)已被?(?:删除|刪除) | [你您]已?(?:删除|刪除)了?(?:这条|此|這則)(?:消息|訊息)
    """),
    _I,
)
"""The whole of what stands for a message that its sender took back."""

_CALL = _any("""
    (?:group )?(?:voice|video) call | (?:sprach|video)anruf | appel (?:vocal|vidéo) | (?:video)?llamada
    chamada de (?:voz|vídeo) | (?:video)?chiamata | (?:spraak|video)oproep
    """)
CALL = re.compile(
    rf"(?:(?:missed|silenced|verpasster|gemiste) )?(?:{_CALL})(?: (?:perdida|manqué|persa))?", _I
)
"""A call, behind the mark of an iPhone."""
_NOTHING = _any(r"""
    waiting for this message[.,]? this may take a while | warte(?:t|n|) auf diese nachricht\b.{0,60}
    live location shared | live-standort (?:wird )?geteilt | missed (?:group )?(?:voice|video) call
    verpasster (?:sprach|video)anruf | [^\n:]{1,20}: https://maps\.google\.com/\?q=[-\d.,]+
    """)
NOTHING = re.compile(f"null|(?i:{_NOTHING})")
"""The whole of other messages without words: calls that were missed, places on a map."""

ENCRYPTED = re.compile(
    _any(r"""
    end-to-end | ende-zu-ende | extremo a extremo | ponta a ponta | ponto a ponto | bout en bout
    totalsträck
    päästä päähän | szyfrow | koncov | végpont | capăt la capăt | uçtan uca | сквозн | наскрізн
    διατερματικ | đầu cuối
    מקצה לקצה | بين الطرفين | एंड-टू-एंड | エンドツーエンド | 종단\s?간 | 端到端 | 端對端 | 端对端
    """),
    _I,
)
"""Stems of "end-to-end encrypted", the notice that begins a chat."""

NOTICE = re.compile(
    r"(?:your )?security code (?:with .{1,60} )?changed\b|"
    r"(?:deine )?sicherheitsnummer .{1,60} hat sich geändert\b",
    _I,
)
"""A changed key, behind the mark of an iPhone."""

_EVENT = _any(r"""
    (?:changed|edited|updated) (?:the|this) (?:group|chat|community|name|subject|description|icon|settings)
    (?:changed|updated) the message timer
    changed their phone number | security code (?:with .{1,60} )?changed
    (?:is|are) (?:now|no longer) an? admin | pinned a message
    created (?:this |the )?(?:group|community) | deleted this group | reset (?:the|this) group
    joined (?:using|via) | requested to join
    (?:turned (?:on|off)|updated) disappearing
    hat (?:den (?:betreff|namen|gruppen)|die (?:gruppe|beschreibung)|das (?:gruppen|bild)|diese gruppe)
    a (?:modifié|changé|créé) (?:le |la |les |ce |l['’])(?:sujet|objet|nom|groupe|description|icône)
    (?:cambió|creó|ha cambiado|ha creado) (?:el|la|los|este) (?:asunto|nombre|grupo|descripción|[íi]cono)
    (?:mudou|alterou|criou) (?:o|a|as|este) (?:assunto|nome|grupo|descrição|imagem|ícone)
    ha (?:cambiato|modificato|creato) (?:l['’]|il |la |le )(?:oggetto|nome|gruppo|descrizione|immagine|icona)
    heeft (?:het|de|deze) (?:onderwerp|groep|beschrijving|naam|pictogram)
    (?:изменил|создал)(?:а|\(а\))? (?:тему|название|описание|картинку|иконку|настройки|группу)
    mengubah (?:deskripsi|subjek|nama|ikon|setelan)
    grup(?:un)? (?:açıklamasını|konusunu|adını|simgesini)
    """)
EVENT = re.compile(f" (?:{_EVENT})", _I)
"""An event of a group behind the name of who did it; no contact is called that."""
_WEAK_EVENT = _any("""
    (?:was |were )?(?:added|removed) | left | created | joined | invited | pinned | blocked | unblocked
    started | changed | turned o(?:n|ff)
    hat | a (?:ajouté|retiré|quitté|épinglé) | añadió | agregó | eliminó | adicionou | removeu
    ha (?:aggiunto|rimosso)
    heeft
    """)
WEAK_EVENT = re.compile(rf" (?:{_WEAK_EVENT})\b", _I)
"""Verbs of events that could be in a contact's name too."""
YOU = frozenset(
    [
        "you",
        "your",
        "du",
        "sie",
        "vous",
        "tu",
        "tú",
        "usted",
        "você",
        "hai",
        "je",
        "u",
        "вы",
        "sen",
        "siz",
        "anda",
    ]
)
"""How WhatsApp calls the owner of the phone, before what they did."""
